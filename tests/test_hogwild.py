"""Workers that update one copy: what one computes alone, and what several do together."""

import pytest
import torch
from processes import run
from sharing import Free, train, used
from torch import nn
from training import Case, difference, loss_of, plainly, sha, trained

import shoal
from shoal.world.join import join_world

pytestmark = pytest.mark.usefixtures("one_thread")

# --- one worker ---

OPTIMIZERS = ["sgd", "momentum", "nesterov", "fused", "foreach", "plain", "adagrad", "rmsprop",
              "adamax", "nadam", "radam"]  # fmt: skip


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("moments", ["shared", "own"])
def test_one_worker_has_the_bits_of_ddp_with_any_elementwise_optimizer(optimizer, moments):
    case = Case(optimizer=optimizer, clip=0.5, epochs=2, steps=None)
    alone = train(Free(case=case, moments=moments))
    assert alone["sha"] == sha(1, case)
    ddp = trained(1, case)[0]
    assert alone["steps"] == [step[:4] for step in ddp["steps"]]
    assert alone["samples"] == ddp["leaves"]  # the same random states too


def test_one_worker_is_the_plain_loop():
    case = Case(optimizer="momentum", clip=0.5)
    assert difference(train(Free(case=case))["weights"], plainly(case)["weights"]) <= 1e-6


# --- several ---

RATES = {"sgd": 0.3, "momentum": 0.02, "adamw": 0.01}


def teach(name, strategy, world=None):
    """Learn a linear teacher's answers; the loss over all samples, before and after."""
    torch.manual_seed(0)
    teacher, inputs = torch.randn(13, 5), torch.randn(512, 13)
    samples = list(zip(inputs, (inputs @ teacher).argmax(1), strict=True))
    model = nn.Sequential(nn.Linear(13, 64), nn.Tanh(), nn.Linear(64, 5))
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.SGD
    more = {"momentum": 0.9} if name == "momentum" else {}
    optimizer = kind(model.parameters(), lr=RATES[name], **more)

    def loss():
        return nn.functional.cross_entropy(model(inputs), (inputs @ teacher).argmax(1)).item()

    before = loss()
    with shoal.join(model, optimizer, strategy=strategy, timeout=30, world=world) as worker:
        for batch in worker.batches(samples, global_batch=32, micro_batch=8, epochs=8):
            worker.backward(*loss_of(model, batch))
            worker.step()
        return before, loss(), worker.weights_hash()


def teach_all():
    world = join_world()
    return {(name, moments): teach(name, shoal.hogwild(moments), world) for name in RATES
            for moments in ("shared", "own")}  # fmt: skip


@pytest.mark.slow
def test_two_workers_learn_as_well_as_ddp_and_hold_one_copy():
    one, two = run(2, teach_all)
    assert one == two
    for (name, moments), (before, after, _) in one.items():
        _, exact, _ = teach(name, shoal.ddp())
        assert exact < 0.4 * before
        assert after < exact + 0.1 * before, (name, moments)


@pytest.mark.parametrize(("workers", "samples", "epochs"), [(2, 53, 2), (3, 53, 1), (3, 7, 3)])
def test_every_sample_is_used_once_an_epoch_whoever_takes_it(workers, samples, epochs):
    case = Case(samples=samples, global_batch=16, micro_batch=2, epochs=epochs, steps=None)
    found = run(workers, train, Free(case=case))
    assert used(found) == sorted([*range(samples)] * epochs)
    leaves = [leaf for each in found for leaf in each["samples"]]
    assert sorted(leaves) == sorted(trained(1, case)[0]["leaves"])  # the same leaves, and seeds
    for each in found:
        assert (each["position"], each["number"]) == (samples * epochs, -(-samples * epochs // 16))
    assert found[0]["updates"] == sum(len(each["steps"]) for each in found)
    assert found[0]["refused"] == 0


def test_claims_are_shares_of_a_step_and_never_cross_it():
    case = Case(samples=64, global_batch=16, micro_batch=2, steps=4)
    found = run(3, train, Free(case=case))
    sizes = {}
    for each in found:
        for number, position, _, count in each["steps"]:
            assert 16 * (number - 1) < position <= 16 * number
            sizes.setdefault(number, []).append(count)
    assert {number: sorted(parts) for number, parts in sizes.items()} == {
        number: [4, 6, 6] for number in (1, 2, 3, 4)
    }


def test_dropout_is_seeded_by_the_leaf_and_not_by_the_worker():
    case = Case(net="dropout", optimizer="sgd", steps=3)
    assert train(Free(case=case))["sha"] == sha(1, case)
