"""Everything random or global follows from the run's own numbers."""

from dataclasses import replace

import pytest
import torch
from processes import run
from training import Case, plainly, sha, train, trained

import shoal

DROPOUT = Case(net="dropout", optimizer="momentum", steps=4)


def test_one_configuration_twice_gives_the_same_losses_and_bits_for_100_steps():
    case = Case(net="dropout", optimizer="fused", clip=0.5, steps=100)
    first, second = run(2, train, case), run(2, train, case)
    assert first[0]["steps"] == second[0]["steps"] and len(first[0]["steps"]) == 100
    assert first[0]["hashes"] == second[0]["hashes"]
    assert len(set(first[0]["hashes"])) == 101


@pytest.mark.parametrize("workers", [2, 3])
def test_dropout_does_not_know_how_many_workers_there_are(workers):
    assert sha(workers, DROPOUT) == sha(1, DROPOUT)


def test_dropout_has_another_mask_with_another_seed_on_the_same_samples():
    no_dropout = replace(DROPOUT, net="ragged")
    assert sha(1, DROPOUT, seed=5) != sha(1, DROPOUT)
    assert sha(1, no_dropout, seed=5) != sha(1, no_dropout)  # the order of samples


def draws() -> list[list[float]]:
    """One number of each random state at every leaf of two steps."""
    import random

    import numpy as np

    model = torch.nn.Linear(1, 1)
    worker = shoal.join(model, torch.optim.SGD(model.parameters(), lr=0.0), seed=4)
    found = []
    for _ in worker.batches([torch.zeros(1)] * 8, global_batch=4, steps=2):
        found.append([float(torch.rand(())), float(np.random.rand()), random.random()])
        worker.backward(model(torch.zeros(1, 1)).sum(), 1)
        worker.step()
    worker.close()
    return found


def test_all_random_states_are_a_function_of_seed_step_and_leaf():
    alone = run(1, draws)[0]
    assert len({number for leaf in alone for number in leaf}) == 3 * 8
    first, second = run(2, draws)
    assert [*first[:2], *second[:2], *first[2:], *second[2:]] == alone


# --- the norm ---


@pytest.mark.parametrize("strategy", ["ddp", "zero1"])
@pytest.mark.parametrize("workers", [2, 3, 4])
def test_an_active_clip_gives_the_same_bits_and_norms_at_any_world_size(workers, strategy):
    case = Case(optimizer="momentum", clip=0.05, bucket=1024, strategy=strategy)
    alone = trained(1, case)[0]
    assert all(norm > case.clip for *_, norm in alone["steps"])
    assert sha(workers, case) == alone["sha"]
    assert trained(workers, case)[-1]["steps"] == alone["steps"]


def test_the_clipped_update_is_that_of_clip_grad_norm():
    torch.set_num_threads(1)
    case = Case(clip=0.05)
    ours, reference = trained(3, case)[0], plainly(case)
    norms = [norm for *_, norm in ours["steps"]]
    assert norms == pytest.approx([norm for *_, norm in reference["steps"]], rel=1e-6)
    assert ours["weights"] == pytest.approx(reference["weights"], rel=1e-6, abs=1e-7)


def test_a_clip_that_is_never_reached_changes_no_bit():
    assert sha(2, Case(), clip=1e6) == sha(2, Case()) != sha(2, Case(), clip=0.05)
