"""`--micro-batch auto`: the largest leaf that fits, and what a run of any recipe will hold."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import launched, said, seats, the_run, weights
from processes import run

from shoal.cli.micro_batch import with_number
from shoal.errors import ShoalError
from shoal.plan.node import free_memory, parse_size

OWN = '''
import atexit
import os
import re
from pathlib import Path

import torch

from shoal.tasks.base import LossSum, Ratio

ELEMENTS = 1 << 19


class Samples:
    """Ragged: every fifth sample is whole, the others are short."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        length = ELEMENTS if index % 5 == 0 else 1000
        return {"x": torch.full((length,), 1e-3 * (1 + index % 7))}


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(200))
        self.still = torch.nn.Parameter(torch.ones(1000), requires_grad=False)

    def forward(self, x):
        for _ in range(3):
            x = (x * self.w.mean()).tanh()
        return x


class Own:
    unit = "shells"

    def collate(self, samples):
        longest = max(len(sample["x"]) for sample in samples)
        rows = torch.zeros(len(samples), longest)
        for row, sample in zip(rows, samples):
            row[: len(sample["x"])] = sample["x"]
        return {"x": rows}

    def build_model(self):
        torch.rand(3)
        return Model()

    def samples(self, split):
        return Samples(64 if split == "train" else 4)

    def loss(self, model, batch):
        return LossSum((model(batch["x"]).mean(1) - 0.5).square().sum(), 3 * len(batch["x"]))

    @torch.no_grad()
    def metrics(self, model, batch):
        total, count = self.loss(model, batch)
        return {"loss": Ratio(float(total), count)}


def build(config, say):
    if os.environ.get("WORLD_SIZE") == "2":
        atexit.register(write_peak)
    return Own()


def write_peak():
    status = Path("/proc/self/status").read_text()
    Path(f"peak-{os.environ['RANK']}").write_text(re.search(r"VmHWM:\\s+(\\d+)", status)[1])
'''
SETTINGS = """
[batch]
global_batch = 16
[budget]
steps = 4
[evaluation]
every = 0
[checkpoint]
save_every = 2
[records]
tensorboard = false
"""
AUTO = ("train", "own.py", "run.toml", "--micro-batch", "auto")


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    at = tmp_path_factory.mktemp("own")
    (at / "own.py").write_text(OWN)
    (at / "run.toml").write_text(SETTINGS)
    return at


@pytest.fixture(scope="module")
def chosen(ground) -> dict[str, tuple[int, list[str]] | str]:
    """What is chosen in one fresh process: at length, tightly, and with next to nothing."""
    return run(1, _choices, str(ground))[0]


def _choices(at: str) -> dict[str, tuple[int, list[str]] | str]:
    import numpy as np
    import torch

    from shoal.plan.leaf import LeafProbe
    from shoal.plan.micro_batch import Allowed, _Search, choose
    from shoal.recipes import catalogue
    from shoal.train.config import resolve

    os.chdir(at)
    files, named = catalogue.words(["own.py", "run.toml"])
    config = resolve(catalogue.configure(files=files, settings=[*named, "workers=2"]))
    task = catalogue.recipe("own.py").build(config, print)
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist())
    probe = LeafProbe(config, task)
    search = _Search(config, task, Allowed(bytes=1 << 40, origin=""), probe, [1, 2, 4, 8])
    found = {"needed": {}, "leaves": {}}
    for size in (1, 2, 4, 8):
        search.measure(size)
        found["needed"][size], found["leaves"][size] = search.needed(size), search.leaf(size).bytes
    found["large"] = (search.best, search.reasons())
    found["untouched"] = bool((before[0] == torch.get_rng_state()).all()) and (
        before[1] == np.random.get_state()[1].tolist()
    )
    tight = Allowed(bytes=(found["needed"][4] + found["needed"][8]) // 2, origin="--memory tight")
    for name, allowed in (
        ("tight", tight),
        ("little", Allowed(bytes=1 << 20, origin="--memory little")),
    ):
        try:
            choice = choose(config, task, allowed, probe)
            found[name] = (choice.micro_batch, choice.reasons)
        except ShoalError as error:
            found[name] = str(error)
    return found


def test_leaves_grow_with_their_samples_and_the_longest_decide(chosen):
    leaves = chosen["leaves"]
    assert 1.5 < leaves[8] / leaves[4] < 2.5
    kept, waiting = 3, 3  # tensors of each sample: for the backward pass, and read ahead
    assert leaves[8] > 8 * (kept + waiting) * 4 * 2**19
    assert chosen["untouched"]


def test_without_a_limit_every_worker_has_a_leaf(chosen):
    size, reasons = chosen["large"]
    assert size == 8
    assert "without a leaf" in reasons[1]


def test_under_a_limit_the_largest_that_fits_is_taken(chosen):
    size, reasons = chosen["tight"]
    assert size == 4
    assert re.search(r"1: \d+ MB, 2: \d+ MB, 4: \d+ MB", reasons[0])
    assert "--memory tight" in reasons[1] and "8 would need" in reasons[1]


def test_too_little_memory_is_refused_with_what_is_needed_and_what_to_do(chosen):
    assert "no leaf fits" in chosen["little"]
    for words in ("2 workers need", "this program", "--memory little", "--strategy zero1"):
        assert words in chosen["little"]


@pytest.fixture(scope="module")
def auto(ground) -> str:
    """A real run of two workers with room for leaves of 4, but not of 8; what it said."""
    program = subprocess.run(
        [sys.executable, "-m", "shoal", "train", "own.py", "run.toml", "--dry-run"],
        cwd=ground, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    (ground / "dry.txt").write_text(program)
    worker = int(re.search(r"^# memory +([\d,]+) MB", program, re.M)[1].replace(",", ""))
    leaf = int(re.search(r"^# a leaf +(\d+) MB", program, re.M)[1])  # of the default, 2 samples
    size = round(1.1 * 2 * (worker + 2 * leaf))  # of 6 samples
    process = launched(*AUTO, "--workers", "2", "--memory", f"{size}MB", at=ground)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    return text


def test_the_run_says_its_choice_and_keeps_the_number(auto, ground):
    assert "measured leaves by samples: 1: " in auto and "--micro-batch 4: 2 workers need" in auto
    manifest = json.loads((the_run(ground) / "run.json").read_text())
    assert (manifest["config"]["batch.micro_batch"], manifest["leaves"]) == (4, 4)


def test_no_worker_holds_more_than_was_promised(auto, ground):
    promised = int(re.search(r"2 workers need ([\d,]+) MB", auto)[1].replace(",", "")) / 2
    for rank in range(2):
        assert int((ground / f"peak-{rank}").read_text()) * 1024 / 1e6 < promised


def test_the_number_by_hand_gives_the_same_weights(auto, ground, tmp_path):
    for name in ("own.py", "run.toml"):
        shutil.copy(ground / name, tmp_path)
    hand = seats(1, "train", "own.py", "run.toml", "--micro-batch", "4", at=tmp_path)
    assert weights(hand) in auto


def test_a_resume_keeps_the_leaves_and_measures_nothing(auto, ground):
    shutil.rmtree(the_run(ground) / "checkpoints" / "step-4", ignore_errors=True)
    for newest in sorted((the_run(ground) / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(newest)
    ended = seats(1, "train", "own.py", "--resume", str(the_run(ground)), "--workers", "1",
                  at=ground)  # fmt: skip
    assert weights(ended) in auto
    assert "measur" not in ended[0].text
    manifest = json.loads((the_run(ground) / "run.json").read_text())
    assert manifest["config"]["batch.micro_batch"] == 4


def test_a_dry_run_of_any_recipe_measures_its_leaf(auto, ground):
    told = (ground / "dry.txt").read_text()
    assert "# parameters    1,200, of which 200 are trained" in told
    assert re.search(r"# a leaf +\d+ MB, measured with 2 of the largest samples \(6 shells\)", told)
    assert "tokens" not in told.partition("# global batch")[2]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--memory", "2GB"), "--memory has no effect without --micro-batch auto"),
        (("--micro-batch", "auto", "--memory", "two"), "--memory is 'two'"),
        (("--micro-batch", "auto", "--memory", "0GB"), "--memory is '0GB'"),
        (("--micro-batch", "auto", "--resume", "runs/x"), "which keeps its leaves"),
        (("--micro-batch", "auto", "--set", "batch.micro_batch=2"), "leave one out"),
        (("--micro-batch", "3"), "must be a multiple of batch.micro_batch (3)"),
        (("--micro-batch", "auto"), "has started 1 here"),
    ],
)
def test_flags_without_sense_are_refused(ground, words, reason):
    unseated = {name: None for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    seat = words == ("--micro-batch", "auto")
    first = () if "--resume" in words else ("own.py", "run.toml")
    ended = seats(1, "train", *first, *words, at=ground,
                  environment=lambda rank: {} if seat else unseated)  # fmt: skip
    assert ended[0].status == 1
    assert reason in said(ended)


def test_servers_of_workers_anywhere_do_not_measure(ground):
    ended = seats(
        1, "serve", "own.py", "--strategy", "async_ps", "--micro-batch", "auto", at=ground
    )
    assert "may join from anywhere" in said(ended)


def test_a_command_line_is_passed_on_with_the_number():
    words = ["train", "--memory=1GB", "--micro-batch", "auto", "own.py", "--memory", "2GB"]
    assert with_number(words, 8) == ["train", "--micro-batch=8", "own.py"]


def test_sizes_are_read_as_people_write_them():
    assert parse_size("2GB") == 2 * 10**9
    assert parse_size("1.5GiB") == 3 << 29
    assert parse_size("500 mb") == 5 * 10**8
    for text in ("", "2", "GB", "-1GB", "1e3MB", "2 gigabytes"):
        with pytest.raises(ShoalError, match="--memory is"):
            parse_size(text)


def test_the_kernel_says_what_is_free():
    assert 1 << 20 < free_memory() < 1 << 50
