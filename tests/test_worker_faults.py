"""A step happens on all workers or on none, and a mistake in a loop is said at once."""

import pytest
import torch
from processes import WorkerFailed, attempt, run
from torch import nn
from torch.utils.checkpoint import checkpoint
from training import Case, attempted

import shoal

WIRES = ["shared_memory", "collective"]


@pytest.mark.parametrize(
    ("strategy", "wire"),
    [("ddp", "shared_memory"), ("zero1", "shared_memory"), ("ddp", "collective")],
)
@pytest.mark.parametrize(("what", "culprit"), [("nan", 0), ("nan", 2), ("inf", 1)])
def test_a_bad_gradient_is_applied_by_no_worker_and_the_worker_and_step_are_named(
    what, culprit, wire, strategy
):
    case = Case(net="wide", optimizer="fused", clip=0.5, bucket=16384, strategy=strategy,
                wire=wire, poison=(culprit, 3, what))  # fmt: skip
    hashes = set()
    for found, error in attempted(3, case):
        assert error is None
        assert found["problem"] == (
            f"worker {culprit} contributed a NaN or an infinity in step 3; "
            "no worker has applied that step"
        )
        assert len(found["steps"]) == 2
        assert found["hashes"][-1] == found["hashes"][-2]
        hashes.add(found["sha"])
    assert len(hashes) == 1


@pytest.mark.parametrize("wire", WIRES)
def test_a_loss_that_is_not_finite_names_its_worker_and_step(wire):
    for found, _ in attempted(2, Case(wire=wire, poison=(1, 2, "loss"))):
        # Said first by whoever finds it first; a peer may hear of it from the other.
        assert "worker 1 got a loss of nan in step 2; no worker" in found["problem"]
        assert found["hashes"][-1] == found["hashes"][-2]


def test_a_worker_alone_refuses_its_own_bad_gradient():
    ((found, _),) = attempted(1, Case(poison=(0, 1, "nan")))
    assert "worker 0 contributed a NaN or an infinity in step 1" in found["problem"]
    assert len(set(found["hashes"])) == 1


def looping(loop):
    """A worker whose model is `loop`'s; what the loop returns."""
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1))
    with shoal.join(model, torch.optim.SGD(model.parameters(), lr=0.1), timeout=20) as worker:
        return loop(worker, model)


SAMPLES = [torch.tensor([1.0, float(i)]) for i in range(8)]


def failing_on_one(worker, model):
    for batch in worker.batches(SAMPLES, global_batch=4, steps=2):
        if worker.rank == 1:
            raise OSError("the camera is unplugged")
        worker.backward(model(batch).sum(), len(batch))
        worker.step()


@pytest.mark.parametrize("workers", [2, 3])
def test_the_others_hear_why_a_users_own_loop_ended(workers):
    for rank, (_, error) in enumerate(attempt(workers, looping, failing_on_one)):
        kind, message, _ = error
        expected = ("OSError", "the camera") if rank == 1 else ("PeerLost", "worker 1: the camera")
        assert kind == expected[0] and message.startswith(expected[1])


def without_targets(worker, model):
    for batch in worker.batches(SAMPLES, global_batch=4, steps=1):
        worker.backward(model(batch).sum() * 0, 0)
        worker.step()


def test_a_step_without_a_target_is_refused():
    with pytest.raises(WorkerFailed, match="no sample of this step has a target"):
        run(2, looping, without_targets)


def uneven_targets(worker, model):
    """Only one leaf of the step counts."""
    losses = []
    for batch in worker.batches(SAMPLES, global_batch=4, steps=1):
        counts = worker._leaf.number == 2
        worker.backward(model(batch).sum() if counts else model(batch).sum() * 0, int(counts))
        step = worker.step()
        losses += [step.count] if step else []
    return losses, worker.weights_hash()


def test_leaves_without_a_target_are_fine_where_another_has_one():
    assert len({str(answer) for answer in run(3, looping, uneven_targets)}) == 1


def reentrant(worker, model):
    for batch in worker.batches(SAMPLES, global_batch=2, steps=1):
        batch.requires_grad_()
        once = checkpoint(model, batch, use_reentrant=True)
        worker.backward((once + checkpoint(model, batch, use_reentrant=True)).sum(), 1)


def test_a_gradient_that_comes_twice_in_one_backward_is_refused_by_name():
    with pytest.raises(WorkerFailed, match=r"'1.bias' got its gradient twice.*use_reentrant=False"):
        run(1, looping, reentrant)


def skipping_a_layer(worker, model):
    """The first layer takes no part: its gradient is zero, and nothing hangs."""
    before = model[0].weight.clone()
    for batch in worker.batches(SAMPLES, global_batch=4, steps=2):
        hidden = torch.cat([batch, batch], dim=-1)
        worker.backward(model[1](hidden).sum(), len(batch))
        worker.step()
    return torch.equal(before, model[0].weight), worker.weights_hash()


def test_a_parameter_that_takes_no_part_stays_as_it_was():
    answers = run(2, looping, skipping_a_layer)
    assert answers[0] == answers[1] and answers[0][0]
    assert run(1, looping, skipping_a_layer)[0][0]


def test_calls_in_the_wrong_order_are_refused():
    model = nn.Linear(2, 1)
    worker = shoal.join(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="backward must follow a batch"):
        worker.backward(model(SAMPLES[0]).sum(), 1)
    with pytest.raises(ValueError, match="step must follow a batch"):
        worker.step()
    worker.close()


def test_a_step_before_its_leaves_have_come_back_is_refused():
    model = nn.Linear(2, 1)
    with shoal.join(model, torch.optim.SGD(model.parameters(), lr=0.1)) as worker:
        for _ in worker.batches(SAMPLES, global_batch=1, steps=1):
            with pytest.raises(ValueError, match="1 leaves of this step are still to come"):
                worker.step()
            break


def with_buffer(frozen_by_rank):
    import os

    model = nn.Linear(2, 1)
    model.register_buffer("scale", torch.tensor(float(frozen_by_rank[int(os.environ["RANK"])])))
    shoal.join(model, torch.optim.SGD(model.parameters(), lr=0.1)).close()


def test_what_does_not_train_must_be_equal_on_all_workers():
    run(2, with_buffer, [3, 3])
    with pytest.raises(WorkerFailed, match="'scale' does not train and differs between"):
        run(2, with_buffer, [3, 4])


def with_own_start():
    import os

    torch.manual_seed(int(os.environ["RANK"]))
    model = nn.Linear(2, 1)
    worker = shoal.join(model, torch.optim.SGD(model.parameters(), lr=0.1))
    found = worker.weights_hash()
    worker.close()
    return found


def test_worker_0s_weights_are_everybodys():
    alone = run(1, with_own_start)
    assert run(3, with_own_start) == alone * 3
