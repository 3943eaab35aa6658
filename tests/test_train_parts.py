"""The parts of training: optimizer, schedule, precision, records, progress, memory."""

import io
import itertools
import json
import math
import resource
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from shoal.errors import ShoalError
from shoal.train.curve import Curve
from shoal.train.optimizer import OptimizerConfig, build_optimizer, set_learning_rate
from shoal.train.precision import autocast
from shoal.train.progress import PLAIN_SECONDS, duration, open_progress, shares
from shoal.train.records import (
    RECORDS_FILE,
    WORKERS_FOLDER,
    JsonLines,
    Record,
    RecordsConfig,
    open_recorders,
    read_records,
    to_line,
    worker_files,
)
from shoal.train.schedule import ScheduleConfig, learning_rate


def record(step: int, **changes) -> Record:
    values = {
        "step": step,
        "position": 32 * step,
        "tokens": 1000,
        "loss": 8.0 / step,
        "lr": 1e-3,
        "grad_norm": 1.5,
        "tokens_per_second": 5000.0,
        "seconds_computing": 0.15,
        "seconds_exchanging": 0.04,
        "seconds_waiting": 0.01,
        "seconds_data": 0.0,
        "bytes_sent": 10,
        "bytes_received": 20,
    }
    return Record(**(values | changes))


# --- optimizer ---


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))


def test_only_matrices_decay_and_the_groups_have_a_fixed_order():
    built = model()
    optimizer = build_optimizer(built, OptimizerConfig(weight_decay=0.3))
    decaying, others = optimizer.param_groups
    assert [p.dim() for p in decaying["params"]] == [2, 2]
    assert [p.dim() for p in others["params"]] == [1, 1, 1]
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.3, 0.0)


def test_the_optimizer_is_torchs_own_and_fused():
    adamw = build_optimizer(model(), OptimizerConfig(lr=0.1, beta1=0.8, beta2=0.7, eps=1e-3))
    assert type(adamw) is torch.optim.AdamW
    group = adamw.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (0.1, (0.8, 0.7), 1e-3)
    config = OptimizerConfig(name="sgd", momentum=0.5, nesterov=True)
    sgd = build_optimizer(model(), config)
    assert type(sgd) is torch.optim.SGD
    assert all(group["fused"] for group in [*adamw.param_groups, *sgd.param_groups])
    assert (sgd.param_groups[0]["momentum"], sgd.param_groups[0]["nesterov"]) == (0.5, True)


def test_frozen_parameters_are_left_out_and_a_frozen_model_is_refused():
    built = model()
    built[0].requires_grad_(False)
    optimizer = build_optimizer(built, OptimizerConfig())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 3
    with pytest.raises(ShoalError, match="no parameter that trains"):
        build_optimizer(built.requires_grad_(False), OptimizerConfig())


def test_every_group_gets_the_learning_rate():
    optimizer = build_optimizer(model(), OptimizerConfig())
    set_learning_rate(optimizer, 0.25)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}


# --- schedule ---


def rates(steps: int = 100, **options) -> list[float]:
    config = ScheduleConfig(**options)
    return [learning_rate(config, 2.0, step=step, steps=steps) for step in range(steps)]


@pytest.mark.parametrize("name", ["cosine", "wsd", "constant"])
def test_the_rate_rises_in_a_line_and_reaches_its_peak(name):
    got = rates(name=name, warmup=0.1)
    assert got[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert got[10] == pytest.approx(2.0) and max(got) == pytest.approx(2.0)


def test_cosine_falls_to_its_floor():
    got = rates(name="cosine", warmup=0.0, floor=0.1)
    assert got[50] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert got == sorted(got, reverse=True) and 0.2 < got[-1] < 0.201
    assert learning_rate(ScheduleConfig(floor=0.1), 2.0, step=150, steps=100) == pytest.approx(0.2)


def test_wsd_is_stable_and_then_falls_in_a_line():
    got = rates(name="wsd", warmup=0.0, decay=0.2, floor=0.0)
    assert got[:80] == [2.0] * 80
    assert got[80:] == pytest.approx([2.0 * (20 - i) / 21 for i in range(20)])


def test_a_constant_rate_is_constant():
    assert rates(name="constant", warmup=0.0) == [2.0] * 100


@pytest.mark.parametrize("name", ["cosine", "wsd", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_very_short_run_trains_at_every_step(name, steps):
    assert all(rate > 0 and math.isfinite(rate) for rate in rates(steps, name=name))


# --- precision ---


def test_bf16_multiplies_in_bfloat16_and_fp32_changes_nothing():
    layer, x = nn.Linear(4, 4), torch.ones(1, 4)
    with autocast(torch.device("cpu"), "bf16"):
        assert layer(x).dtype is torch.bfloat16
    with autocast(torch.device("cpu"), "fp32"):
        assert layer(x).dtype is torch.float32
    with pytest.raises(ShoalError, match="fp32, bf16"):
        autocast(torch.device("cpu"), "fp8")


# --- records ---


def steps_in(path: Path) -> list[int]:
    return [fields["step"] for fields in read_records(path)]


def test_a_resumed_run_has_no_step_twice_even_after_a_torn_line(tmp_path):
    path = tmp_path / RECORDS_FILE
    first = JsonLines(path)
    for step in range(1, 6):
        first.write(record(step))
    first.close()
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    assert steps_in(path) == [1, 2, 3, 4, 5]
    again = JsonLines(path, resumed_step=3)
    again.write(record(4, loss=0.5))
    again.close()
    assert steps_in(path) == [1, 2, 3, 4]
    assert read_records(path)[-1]["loss"] == 0.5
    assert list(tmp_path.iterdir()) == [path]


def test_a_line_can_be_read_as_soon_as_it_is_written(tmp_path):
    lines = JsonLines(tmp_path / RECORDS_FILE)
    lines.write(record(1, held_out={"loss": 2.0}))
    assert read_records(tmp_path / RECORDS_FILE)[0]["held_out"] == {"loss": 2.0}
    lines.close()


def test_a_loss_that_is_not_finite_is_valid_json():
    assert json.loads(to_line(record(1, loss=math.nan)))["loss"] is None
    assert "held_out" not in json.loads(to_line(record(1)))


def recorders(folder: Path, *, worker: int = 0, warn=None, resumed_step: int = 0, **options):
    return open_recorders(
        RecordsConfig(**({"tensorboard": False} | options)),
        folder,
        worker=worker,
        workers=2,
        resumed_step=resumed_step,
        run={"seed": 0},
        warn=warn or pytest.fail,
    )


def test_every_nth_step_is_recorded_and_the_first_the_last_and_the_measured(tmp_path):
    with recorders(tmp_path, every=4) as open_:
        for step in range(1, 11):
            held_out = {"loss": 1.0} if step == 6 else None
            open_.write(record(step, held_out=held_out), last=step == 10)
    assert steps_in(tmp_path / RECORDS_FILE) == [1, 4, 6, 8, 10]


def test_other_workers_record_their_own_lines_alone(tmp_path):
    with recorders(tmp_path, worker=1, tensorboard=True) as open_:
        open_.write(record(1))
    assert [path.name for path in tmp_path.iterdir()] == [WORKERS_FOLDER]
    assert {rank: steps_in(path) for rank, path in worker_files(tmp_path).items()} == {1: [1]}


def test_a_resume_forgets_later_records_of_workers_that_are_gone(tmp_path):
    for worker in (1, 2):
        with recorders(tmp_path, worker=worker) as open_:
            for step in (1, 2, 3):
                open_.write(record(step))
    with recorders(tmp_path, worker=0, resumed_step=2):
        pass  # two workers go on: 1 forgets its own
    files = worker_files(tmp_path)
    assert (steps_in(files[1]), steps_in(files[2])) == ([1, 2, 3], [1, 2])


def test_a_worker_that_cannot_record_trains_all_the_same(tmp_path):
    (tmp_path / WORKERS_FOLDER).write_text("in the way")
    told: list[str] = []
    with recorders(tmp_path, worker=1, warn=told.append) as open_:
        open_.write(record(1))
    assert len(told) == 1 and "its times and bytes are not recorded" in told[0]


@pytest.fixture
def disk_with_room_for():
    """Limits how long a file may get, which fails and cuts writes as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_records_and_neither_the_run_nor_a_line(tmp_path, disk_with_room_for):
    warnings: list[str] = []
    with recorders(tmp_path, warn=warnings.append) as open_:
        open_.write(record(1))
        room = (tmp_path / RECORDS_FILE).stat().st_size
        disk_with_room_for(room + 50)  # half a line
        open_.write(record(2))
        disk_with_room_for(room)
        open_.write(record(3))
        disk_with_room_for(100 * room)
        open_.write(record(4))
    assert open_.lost == 2
    assert "step 2 was not written" in warnings[0] and warnings[1] == "2 records were not written"
    lines = (tmp_path / RECORDS_FILE).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 4]


def test_tensorboard_holds_every_value_once_after_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with recorders(tmp_path, tensorboard=True) as open_:
        for step in (1, 2, 3):
            open_.write(record(step))
    with recorders(tmp_path, tensorboard=True, resumed_step=2) as open_:
        open_.write(record(3, loss=0.5, held_out={"loss": 2.5}))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 8), (2, 4), (3, 0.5)]
    assert [e.value for e in events.Scalars("held_out/loss")] == [2.5]
    assert events.Scalars("bytes/sent")[0].value == 10


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_a_missing_extra_names_its_install_command(tmp_path, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ShoalError, match=rf"pip install 'shoal\[{package}\]'"):
        recorders(tmp_path, **{package: True})


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_an_extra_gets_the_figures_by_step(tmp_path, package, monkeypatch):
    calls: list[tuple] = []
    fake = types.ModuleType(package)
    fake.init = lambda **options: calls.append(("init", options))
    fake.log = lambda figures, step: calls.append(("log", step, figures["train/loss"]))
    fake.finish = lambda: calls.append(("finish",))
    monkeypatch.setitem(sys.modules, package, fake)
    with recorders(tmp_path, **{package: True}) as open_:
        open_.write(record(2))
    assert calls[0][1]["config"] == {"seed": 0} and calls[0][1]["name"] == tmp_path.name
    assert calls[1:] == [("log", 2, 4.0), ("finish",)]


# --- progress ---


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(steps: int, *, seconds: float, out=None, **options):
    """A run of `steps` steps of `seconds` each; what it wrote to out and to err."""
    out, err, clock = out or io.StringIO(), io.StringIO(), Clock()
    with open_progress(steps, out=out, err=err, clock=clock, **options) as progress:
        for step in range(1, steps + 1):
            clock.now += seconds
            held_out = {"loss": 3.0} if step == steps else None
            progress.step(record(step, held_out=held_out), last=step == steps)
            if step == 2:
                progress.warn(3, "the disk is full")
        progress.finish(Path("runs/x"), hints=["shoal generate runs/x"])
    return out.getvalue(), err.getvalue()


def test_plain_lines_are_seconds_apart_and_the_first_and_last_are_there():
    out, err = show(100, seconds=1.0)
    lines = [line for line in out.splitlines() if line.startswith("step ")]
    shown = [int(line.split()[1].split("/")[0]) for line in lines]
    assert shown[0] == 1 and shown[-1] == 100
    assert min(b - a for a, b in itertools.pairwise(shown[:-1])) >= PLAIN_SECONDS
    assert err == "warning: worker 3: the disk is full\n"


def test_a_plain_line_says_what_matters():
    out, _ = show(2, seconds=1.0)
    first = out.splitlines()[0]
    for words in ("step 1/2", "loss 8.000", "lr 1.00e-03", "tokens/s 5,000", "1s left"):
        assert words in first
    assert "compute 75 % / exchange 20 % / wait 5 %" in first


def test_the_end_says_what_was_reached_and_where_it_is():
    out, _ = show(4, seconds=1.0)
    for words in (
        "loss: 8.000 -> 2.000 (step 1 -> 4)",
        "held out: 3.000",
        "tokens/s: 1,000",
        "run: runs/x",
        "try: shoal generate runs/x",
    ):
        assert words in out


def test_json_mode_prints_the_recorded_lines_only():
    out, err = show(9, seconds=0.1, json=True, every=4)
    assert [json.loads(line)["step"] for line in out.splitlines()] == [1, 4, 8, 9]
    assert err == "warning: worker 3: the disk is full\n"


def test_a_terminal_gets_a_live_display_and_its_cursor_back(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    out, _ = show(20, seconds=1.0, out=Terminal())
    for words in ("step", "20/20", "worker 3: the disk is full", "finished", "runs/x"):
        assert words in out
    assert out.rfind("\x1b[?25h") > out.rfind("\x1b[?25l") >= 0


def test_a_resumed_run_counts_its_own_steps_for_the_time_left():
    out, clock = io.StringIO(), Clock()
    with open_progress(100, resumed_step=90, out=out, clock=clock) as progress:
        clock.now = 2.0
        progress.step(record(91))
    assert "18s left" in out.getvalue()


def test_times_and_shares_in_words():
    assert [duration(s) for s in (42, 187, 7500)] == ["42s", "3m 07s", "2h 05m"]
    assert "data 50 %" in shares(replace(record(1), seconds_data=0.2))
    nothing = dict.fromkeys(("seconds_computing", "seconds_exchanging", "seconds_waiting"), 0.0)
    assert shares(replace(record(1), **nothing)) == ""


def test_a_curve_of_any_length_is_bounded_and_falls_as_its_values_do():
    curve = Curve()
    assert curve.bars(10) == ""
    for i in range(100_000):
        curve.add(1.0 / (1 + i / 10_000))
    curve.add(math.nan)
    bars = curve.bars(10)
    assert len(bars) == 10 and len(curve._means) <= 512
    assert list(bars) == sorted(bars, reverse=True) and bars[0] == "█" and bars[-1] == "▁"
