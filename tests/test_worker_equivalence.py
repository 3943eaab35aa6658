"""Any number of workers over any wire: the update that one process would have made."""

from dataclasses import replace

import pytest
from training import Case, difference, plainly, sha, trained

WIRES = ["shared_memory", "collective"]
STRATEGIES = ["ddp", "zero1"]


def ways(workers: int) -> list[tuple[str, str]]:
    """With many workers, two of the four ways hold both strategies and both wires."""
    every = [(strategy, wire) for strategy in STRATEGIES for wire in WIRES]
    return every if workers < 4 else [every[0], every[3]]


ANY = [(workers, *way) for workers in (1, 2, 3, 4, 8) for way in ways(workers)]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("workers", "strategy", "wire"), ANY)
def test_weights_are_the_same_bits_at_any_world_size_over_any_wire(workers, strategy, wire):
    case = Case(optimizer="fused", clip=0.5, bucket=2048)
    assert sha(workers, case, strategy=strategy, wire=wire) == sha(1, case)


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8])
def test_gradient_and_weights_are_those_of_one_process_with_the_whole_batch(workers):
    case = Case(optimizer="fused", clip=0.5, bucket=2048)
    ours, reference = trained(workers, case)[0], plainly(case)
    assert difference(ours["gradient"], reference["gradient"]) <= 1e-6
    assert difference(ours["weights"], reference["weights"]) <= 1e-6
    assert ours["steps"] == [pytest.approx(step, rel=1e-6) for step in reference["steps"]]


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov", "fused", "foreach", "plain"])
def test_every_optimizer_steps_as_it_does_alone(optimizer):
    case = Case(optimizer=optimizer)
    assert difference(trained(3, case)[0]["weights"], plainly(case)["weights"]) <= 1e-6


@pytest.mark.parametrize(
    "optimizer",
    [
        "sgd",
        "momentum",
        "nesterov",
        "foreach",
        "plain",
        pytest.param("adamax", marks=pytest.mark.slow),
        pytest.param("adagrad", marks=pytest.mark.slow),
        pytest.param("rmsprop", marks=pytest.mark.slow),
        pytest.param("nadam", marks=pytest.mark.slow),
        pytest.param("radam", marks=pytest.mark.slow),
    ],
)
def test_an_owner_steps_its_slices_of_any_elementwise_optimizer_to_the_same_bits(optimizer):
    case = Case(optimizer=optimizer, bucket=1024)
    assert sha(3, case, strategy="zero1") == sha(1, case)


def test_parameters_longer_than_a_bucket_are_cut_between_owners():
    case = Case(net="wide", optimizer="fused", bucket=16384, steps=3)
    alone = sha(1, case)
    assert trained(1, case)[0]["buckets"] > 1
    for workers, strategy, wire in [(2, "zero1", "collective"), (3, "zero1", "shared_memory"),
                                    (3, "ddp", "collective")]:  # fmt: skip
        assert sha(workers, case, strategy=strategy, wire=wire) == alone


def test_the_length_of_a_bucket_does_not_touch_the_result():
    case = Case(net="wide", optimizer="fused", clip=0.1, steps=3)
    assert len({sha(2, case, bucket=bucket) for bucket in (4096, 40_000, 1 << 20)}) == 1


# --- a finite data set ---

ENDS = [
    Case(samples=37, epochs=1, steps=None, micro_batch=2),  # 16, 16, 5: the last leaf has one
    Case(samples=17, epochs=1, steps=None, micro_batch=2),  # 16, 1: one worker has the only leaf
    Case(samples=10, epochs=2, steps=None, micro_batch=4),  # 16, 4: an epoch ends inside a step
    Case(samples=3, epochs=1, steps=None, micro_batch=2),  # one step, fewer leaves than workers
]


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("case", ENDS, ids=lambda case: f"{case.samples} samples")
def test_a_smaller_last_step_ends_the_run_on_every_worker(case, wire):
    case = replace(case, strategy="zero1" if wire == "collective" else "ddp", wire=wire)
    alone = trained(1, case)[0]
    for workers in (2, 4):
        for found in trained(workers, case):
            assert found["sha"] == alone["sha"] and found["steps"] == alone["steps"]
    assert difference(alone["weights"], plainly(case)["weights"]) <= 1e-6
    assert alone["steps"][-1][1] == case.samples * case.epochs


@pytest.mark.parametrize("case", ENDS, ids=lambda case: f"{case.samples} samples")
def test_no_sample_is_skipped_repeated_or_padded(case):
    for workers in (1, 2, 4):
        leaves = [leaf for found in trained(workers, case) for leaf in found["leaves"]]
        assert sorted(leaves) == sorted(trained(1, case)[0]["leaves"])
        samples = sorted(index for _, _, indices in leaves for index in indices)
        assert samples == sorted([*range(case.samples)] * int(case.epochs))


# --- tokens ---


RAGGED = Case(net="tokens", samples=64, global_batch=32, micro_batch=2, steps=2)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_ragged_targets_are_weighted_by_token(workers):
    ours, reference = trained(workers, RAGGED)[0], plainly(RAGGED)
    assert difference(ours["gradient"], reference["gradient"]) <= 1e-6
    for mine, theirs in zip(ours["steps"], reference["steps"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)


def test_the_mean_of_means_is_another_gradient_on_the_same_data():
    wrong, right = plainly(RAGGED, mean_of_means=True), plainly(RAGGED)
    assert difference(wrong["gradient"], right["gradient"]) > 0.01


def test_counts_are_targets_and_not_positions():
    for _, _, _, count, _ in trained(2, RAGGED)[0]["steps"]:
        assert 0 < count < 32 * 64


# --- accumulation ---


@pytest.mark.parametrize("micro_batch", [1, 4, 8, 16])
def test_the_size_of_a_leaf_changes_rounding_only(micro_batch):
    case = Case(optimizer="momentum")
    found = trained(1, replace(case, micro_batch=micro_batch))[0]
    assert difference(found["weights"], plainly(case)["weights"]) <= 1e-6


def test_leaf_sizes_do_round_differently_so_bits_depend_on_them():
    assert sha(1, Case(), micro_batch=1) != sha(1, Case(), micro_batch=16)
