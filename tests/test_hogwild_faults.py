"""What goes wrong among workers of one copy is said, and what gets lost is counted."""

from dataclasses import replace

import pytest
import torch
from processes import attempt, run
from sharing import LONGER, Free, train, used
from torch import nn
from training import Case, sha

import shoal

pytestmark = pytest.mark.usefixtures("one_thread")

# --- faults ---


def test_a_worker_that_is_killed_is_named_by_the_others():
    outcomes = attempt(3, train, Free(case=replace(LONGER, epochs=400), kill=(1, 3)))
    assert outcomes[1] == (None, None)
    for _, error in (outcomes[0], outcomes[2]):
        assert error[0] == "PeerLost" and "worker 1 (process" in error[1]


def test_a_claim_with_a_nan_is_refused_counted_and_named_and_the_run_goes_on():
    found = run(2, train, Free(case=LONGER, poison=((1, 2), (1, 5))))
    assert [event[1:] for event in found[1]["events"]] == [
        (1, "contributed a NaN or an infinity, which was refused")
    ] * 2
    assert found[0]["events"] == []
    assert (found[0]["refused"], found[0]["updates"]) == (2, 6 * 256 // 8 - 2)
    assert len(used(found)) == 6 * 256
    assert all(map(bool, [abs(found[0]["weights"]).max() < 1e6]))


def test_a_refused_claim_leaves_the_copy_as_it_was():
    case = Case(steps=2)
    assert train(Free(case=case, poison=((0, 2),)))["sha"] == sha(1, replace(case, steps=1))


def test_three_refusals_in_a_row_end_the_run_with_the_name_of_the_worker():
    poison = tuple((1, claim) for claim in (2, 3, 4))
    outcomes = attempt(2, train, Free(case=replace(LONGER, epochs=400), poison=poison))
    (_, first), (_, second) = outcomes
    assert second[0] == "ShoalError" and first[0] == "PeerLost"
    for told in (first[1], second[1]):
        assert "worker 1 " in told and "contributed a NaN or an infinity 3 times in a row" in told


def without_targets():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    events = []
    with shoal.join(model, optimizer, strategy=shoal.hogwild()) as worker:
        before = worker.weights_hash()
        for batch in worker.batches([torch.ones(2)] * 4, global_batch=2, steps=2):
            worker.backward(model(batch).sum() * 0, 0)
            step = worker.step()
            events += step.events if step else ()
        return events, before == worker.weights_hash(), worker.losses()


def test_a_claim_without_a_target_is_passed_over_and_said():
    events, same, losses = without_targets()
    assert same and (losses.updates, losses.refused) == (0, 2)
    assert events == [(0, "a claim has no target to learn from, and was passed over")] * 2


# --- what it cannot serve ---


@pytest.mark.parametrize(("optimizer", "words"), [(torch.optim.Adafactor, "Adafactor cannot"),
                                                  (torch.optim.LBFGS, "LBFGS cannot")])  # fmt: skip
def test_an_optimizer_that_must_see_whole_parameters_is_refused(optimizer, words):
    model = nn.Linear(2, 1)
    with pytest.raises(shoal.ShoalError, match=words):
        shoal.join(model, optimizer(model.parameters()), strategy=shoal.hogwild())


def test_another_device_and_another_wire_are_refused():
    model = nn.Linear(2, 1, device="meta")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(shoal.ShoalError, match=r"one memory that all workers.*on meta"):
        shoal.join(model, optimizer, strategy=shoal.hogwild())
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(shoal.ShoalError, match="collective wire copies"):
        shoal.join(model, optimizer, strategy=shoal.hogwild(), wire="collective")


# --- lost updates ---


def adding_ones(updates):
    """Every update adds exactly 1 to every number of the model."""
    model = nn.Linear(300, 300, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
    with shoal.join(model, optimizer, strategy=shoal.hogwild(), timeout=30) as worker:
        for _ in worker.batches([torch.zeros(1)] * 4, global_batch=worker.size, steps=updates):
            worker.backward(-model.weight.sum(), 1)
            worker.step()
        losses = worker.losses()
        return losses.updates, losses.lost, losses.overlapping, 1 - float(
            model.weight.detach().double().mean()
        ) / losses.updates  # fmt: skip


def test_a_worker_alone_loses_nothing():
    ((updates, lost, overlapping, really),) = run(1, adding_ones, 50)
    assert (updates, lost, overlapping, really) == (50, 0.0, 0.0, 0.0)


def test_what_parameters_lose_lies_below_the_share_of_overlapping_updates():
    (updates, lost, overlapping, really), _ = run(2, adding_ones, 300)
    assert updates == 600
    assert 0 <= lost <= overlapping and 0 <= really <= overlapping
    assert overlapping > 0


def test_a_canary_that_is_written_back_counts_as_lost():
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with shoal.join(model, optimizer, strategy=shoal.hogwild()) as worker:
        for batch in worker.batches([torch.ones(4)] * 4, global_batch=1, steps=8):
            old = worker._lost.canaries.clone()
            worker.backward(model(batch).sum(), 1)
            worker.step()
            if worker.steps == 4:  # as another worker would that had read them before
                worker._lost.canaries.copy_(old)
        assert worker.losses().lost == pytest.approx(1 / 8)
