"""Local steps and codecs through a checkpoint: nothing is forgotten, whatever the size."""

import re
from dataclasses import dataclass, replace
from typing import Any

import pytest
from processes import WorkerFailed, run
from training import Case, build, build_optimizer, data, loss_of

import shoal
from shoal.checkpoint import own_state
from shoal.strategy.options import LocalConfig, build_strategy

CASE = Case(optimizer="fused", net="wide", samples=64, steps=14)
LOCAL = LocalConfig(inner_steps=4, warm_up=0.2)
STREAMED = replace(LOCAL, fragments=2, delay=1)
FORMS = {
    "ddp": ("ddp", LocalConfig()),
    "diloco": ("diloco", LOCAL),
    "diloco+int4": ("diloco+int4", LOCAL),
    "local_sgd+topk2": ("local_sgd+topk2", LocalConfig(inner_steps=4)),
    "streaming_diloco": ("streaming_diloco", replace(STREAMED, warm_up=0.1)),
    "sparse_loco": ("sparse_loco", STREAMED),
    "ddp+int8": ("ddp+int8", LocalConfig()),
    "ddp+powersgd": ("ddp+powersgd", LocalConfig()),
    "zero1+int8": ("zero1+int8", LocalConfig()),
    "powersgd": ("powersgd", LocalConfig(warm_up=0.3)),
}


@dataclass(frozen=True)
class Part:
    form: str
    folder: str
    begin: bool
    stop_after: int
    case: Case = CASE


def train(part: Part) -> dict[str, Any]:
    """Train from the newest checkpoint to a step, and save there."""
    case = part.case
    model = build(case)
    name, local = FORMS[part.form]
    with (
        shoal.join(model, build_optimizer(case, model), strategy=build_strategy(name, local),
                   seed=case.seed, timeout=30) as worker,
    ):  # fmt: skip
        if not part.begin:
            assert shoal.resume(worker, part.folder)
        owed = worker.coded.mine.residual.double().sum().item() if worker.coded else 0.0
        learnt, replica = learnt_by(worker), worker.weights_hash()
        for batch in worker.batches(data(case), global_batch=case.global_batch, steps=case.steps,
                                    micro_batch=case.micro_batch):  # fmt: skip
            worker.backward(*loss_of(model, batch))
            step = worker.step()
            if step and step.number >= part.stop_after and worker.settled:
                break
        assert shoal.save(worker, part.folder)
        now = learnt_by(worker)
        with worker.agreed():
            return {
                "sha": worker.weights_hash(),
                "owed at start": owed,
                "learnt at start": learnt,
                "learnt": now,
                "owed": worker.coded.mine.residual.double().sum().item() if worker.coded else 0.0,
                "steps": worker.steps,
                "began": replica,
            }


def learnt_by(worker: Any) -> list[float]:
    """Loss, targets, and by fragment targets and targets x delta, of the present round."""
    rounds = worker.rounds
    if rounds is None:
        return []
    found = [*rounds.since]
    for weight, group in zip(rounds.weights, rounds.mean.groups, strict=True):
        places = [slice(*rounds.mean.units[number].range) for number in group.units]
        deltas = [(rounds.replica[p] - rounds.local[p]).double().sum().item() for p in places]
        found += [weight, weight * sum(deltas)]
    return found


def shas(size: int, part: Part) -> list[dict[str, Any]]:
    found = run(size, train, part)
    assert len({worker["sha"] for worker in found}) == 1
    return found


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("form", FORMS)
def test_a_run_that_was_resumed_twice_has_the_bits_of_one_that_never_stopped(form, tmp_path):
    whole = shas(2, Part(form, str(tmp_path / "whole"), True, 14))
    parts = str(tmp_path / "parts")
    shas(2, Part(form, parts, True, 2))
    shas(2, Part(form, parts, False, 7))  # inside a round, where there are such
    last = shas(2, Part(form, parts, False, 14))
    assert last[0]["steps"] == 14
    assert last[0]["sha"] == whole[0]["sha"]


@pytest.mark.parametrize("form", ["diloco+int4", "sparse_loco", "ddp+int8", "zero1+int8"])
@pytest.mark.parametrize(("old", "new"), [(2, 3), (3, 1)])
def test_what_is_owed_is_conserved_when_the_number_of_workers_changes(form, old, new, tmp_path):
    folder = str(tmp_path / "run")
    before = shas(old, Part(form, folder, True, 11))
    after = shas(new, Part(form, folder, False, 14))
    owed = sum(worker["owed"] for worker in before) / old
    assert owed != 0
    now = sum(worker["owed at start"] for worker in after) / new
    assert now == pytest.approx(owed, rel=1e-4)
    assert after[0]["steps"] == 14


def train_as_once(part: Part) -> dict[str, Any]:
    """As a version that did not know the peak of the rates yet."""
    told = own_state._Mine.flat

    def fewer(mine: Any) -> list[float]:
        numbers = told(mine)
        return [*numbers[:3], *numbers[4:]]

    own_state._Mine.flat = fewer  # in this worker's own process
    return train(part)


@pytest.mark.parametrize("form", ["diloco", "streaming_diloco"])
def test_a_round_that_another_version_has_saved_is_refused(form, tmp_path):
    folder = str(tmp_path / "run")
    run(1, train_as_once, Part(form, folder, True, 6))
    with pytest.raises(WorkerFailed, match="saved by another version of Shoal"):
        run(1, train, Part(form, folder, False, 8))


@pytest.mark.parametrize("form", ["diloco", "streaming_diloco"])
@pytest.mark.parametrize(("old", "new"), [(3, 1), (3, 2), (2, 3), (1, 2)])
def test_what_was_learnt_in_a_round_is_conserved_when_the_number_of_workers_changes(
    form, old, new, tmp_path
):
    folder = str(tmp_path / "run")
    before = [worker["learnt"] for worker in shas(old, Part(form, folder, True, 9))]
    after = shas(new, Part(form, folder, False, 14))
    sums = [sum(parts) for parts in zip(*before, strict=True)]
    assert all(sums[:3]) and any(sums[3::2])
    now = [worker["learnt at start"] for worker in after]
    found = [sum(parts) for parts in zip(*now, strict=True)]
    assert found == pytest.approx(sums, rel=1e-4, abs=1e-2)
    assert after[0]["steps"] == 14


@pytest.mark.parametrize(
    ("saved", "resumed"),
    [("ddp", "local_sgd+topk2"), ("local_sgd+topk2", "ddp"), ("ddp", "ddp+int8"),
     ("ddp+int8", "ddp"), ("diloco", "ddp"), ("ddp+int8", "local_sgd+topk2"),
     ("diloco+int4", "streaming_diloco"), ("sparse_loco", "diloco")],
)  # fmt: skip
def test_a_checkpoint_of_another_strategy_is_refused(saved, resumed, tmp_path):
    folder = str(tmp_path / "run")
    shas(1, Part(saved, folder, True, 6))
    with pytest.raises(
        WorkerFailed, match=f"another strategy than '{re.escape(resumed)}'"
    ) as error:
        run(1, train, Part(resumed, folder, False, 8))
    assert error.value.kind == "ShoalError"
