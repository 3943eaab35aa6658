"""What is shared beside the weights: the optimizer's state, its checkpoint, rows of embeddings."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import run
from sharing import LONGER, Free, train, used
from torch import nn
from training import Case, build, build_optimizer, data, difference, flat, loss_of, sha

import shoal
from shoal.checkpoint.store import Checkpoints
from shoal.data.order import Order

pytestmark = pytest.mark.usefixtures("one_thread")

# --- state ---


@pytest.mark.parametrize(("first", "then"), [(1, 1), (1, 2), (2, 1), (2, 3)])
@pytest.mark.parametrize("moments", ["shared", "own"])
def test_a_resumed_run_uses_every_sample_once(tmp_path, moments, first, then):
    case = Case(optimizer="fused", samples=64, global_batch=16, micro_batch=2, steps=3)
    free = Free(case=case, moments=moments, folder=str(tmp_path))
    before = run(first, train, free)
    after = run(then, train, replace(free, case=replace(case, steps=8)))
    assert after[0]["position"] == 8 * 16
    assert used(before + after) == sorted([*range(64)] * 2)
    if (first, then) == (1, 1):
        assert after[0]["sha"] == sha(1, case, steps=8)


def test_each_workers_own_moments_are_saved_and_go_back_to_it(tmp_path):
    case = Case(optimizer="fused", samples=64, global_batch=16, micro_batch=2, steps=3)
    run(2, train, Free(case=case, moments="own", folder=str(tmp_path)))
    checkpoint, _ = Checkpoints(tmp_path, 1).newest()
    assert {name.split("/")[0] for name in checkpoint.names()} == {"model", "moments"}
    ones = [checkpoint.read(f"moments/{rank}/0.weight/exp_avg") for rank in (0, 1)]
    assert not torch.equal(*ones)
    run(2, resumed_moments, case, str(tmp_path))


def resumed_moments(case, folder):
    model = build(case)
    optimizer = build_optimizer(case, model)
    with shoal.join(model, optimizer, strategy=shoal.hogwild("own"), timeout=30) as worker:
        shoal.resume(worker, folder)
        checkpoint, _ = Checkpoints(Path(folder), 1).newest()
        mine = checkpoint.read(f"moments/{worker.rank}/0.weight/exp_avg")
        assert torch.equal(optimizer.state[model[0].weight]["exp_avg"].flatten(), mine)


def shared_state(workers_share):
    """Whether a number that one worker writes into its moments is read by the other."""
    case = Case(optimizer="plain", samples=64, steps=20)
    model = build(case)
    optimizer = build_optimizer(case, model)
    moments = "shared" if workers_share else "own"
    with shoal.join(model, optimizer, strategy=shoal.hogwild(moments), timeout=30) as worker:
        for batch in worker.batches(data(case), global_batch=16, micro_batch=2, steps=20):
            worker.backward(*loss_of(model, batch))
            worker.step()
        state = optimizer.state[model[0].weight]
        worker._meet()
        if worker.rank == 0:
            state["exp_avg"].fill_(7.0)
        worker._meet()
        return float(state["exp_avg"].mean()), int(state["step"])


def test_moments_are_one_copy_or_one_a_worker():
    (first, steps), (second, _) = run(2, shared_state, True)
    assert first == second == 7.0
    assert 38 <= steps <= 40  # every update of both workers; a count can be lost like any number
    (_, one), (second, two) = run(2, shared_state, False)
    assert second != 7.0
    assert one + two == 40


def test_a_stop_ends_the_step_for_everybody():
    found = run(2, train, Free(case=replace(LONGER, epochs=50), stop=(1, 3)))
    position = found[0]["position"]
    assert found[1]["position"] == position < 50 * 256
    assert position % 16 == 0
    assert len(used(found)) == position


# --- sparse rows ---


class Bag(nn.Module):
    """Rows of an embedding, and a head where the optimizer can serve both."""

    def __init__(self, *, sparse: bool, head: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows = nn.Embedding(50, 4, sparse=sparse)
        self.head = nn.Linear(4, 1) if head else None

    def forward(self, tokens):
        mean = self.rows(tokens).mean(1)
        return self.head(mean) if self.head else mean.sum(1, keepdim=True)


SPARSE = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad,
          "sparse_adam": torch.optim.SparseAdam}  # fmt: skip


def tokens_and_targets(limit=50):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, limit, (64, 3), generator=generator)
    return list(zip(tokens, torch.randn(64, 1, generator=generator), strict=True))


def train_rows(name, *, sparse=True, limit=50, steps=8, mode="hogwild"):
    model = Bag(sparse=sparse, head=name != "sparse_adam")
    first = model.rows.weight.detach().clone()
    optimizer = SPARSE[name](model.parameters(), lr=0.1)
    kinds = set()
    with shoal.join(model, optimizer, strategy=getattr(shoal, mode)(), clip=0.5,
                    timeout=30) as worker:  # fmt: skip
        for inputs, targets in worker.batches(tokens_and_targets(limit), global_batch=8,
                                              micro_batch=2, steps=steps):  # fmt: skip
            loss = (model(inputs) - targets).square().sum()
            worker.backward(loss, len(inputs))
            if worker.step():
                kinds.add(model.rows.weight.grad.layout)
        return flat(model.parameters()), (model.rows.weight != first).any(1).tolist(), kinds


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("name", ["sgd", "adagrad"])
def test_sparse_rows_step_as_dense_ones_do(name):
    sparse, _, kinds = train_rows(name)
    dense, _, _ = train_rows(name, sparse=False, mode="ddp")
    assert kinds == {torch.sparse_coo}
    assert difference(sparse, dense) <= 1e-6


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_sparse_adam_steps_as_in_a_plain_loop():
    found, _, _ = train_rows("sparse_adam")
    model = Bag(sparse=True, head=False)
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=0.1)
    samples, order = tokens_and_targets(), Order(seed=0, length=64)
    for start in range(0, 64, 8):
        chosen = [samples[i] for i in order.indices(start, start + 8)]
        inputs, targets = torch.utils.data.default_collate(chosen)
        optimizer.zero_grad()
        ((model(inputs) - targets).square().sum() / 8).backward()
        gradient = model.rows.weight.grad.coalesce()
        norm = float(torch.linalg.vector_norm(gradient.values()))
        model.rows.weight.grad = gradient * min(1.0, 0.5 / norm)
        optimizer.step()
    assert difference(found, flat(model.parameters())) <= 1e-6


@pytest.mark.parametrize("name", SPARSE)
def test_two_workers_write_the_rows_that_their_samples_touch_and_no_other(name):
    touched = {int(t) for tokens, _ in tokens_and_targets(20) for t in tokens}
    one, two = run(2, train_rows_of_twenty, name)
    assert (one[0] == two[0]).all()
    assert {row for row, moved in enumerate(one[1]) if moved} == touched
    assert max(touched) < 20


def train_rows_of_twenty(name):
    return train_rows(name, limit=20)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(50, 4, sparse=True)

    def forward(self, tokens):
        return self.rows(tokens).mean(1) @ self.rows.weight.sum(0, keepdim=True).T


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_a_sparse_embedding_with_a_dense_gradient_is_refused_by_name():
    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with shoal.join(model, optimizer, strategy=shoal.hogwild()) as worker:
        for inputs, _ in worker.batches(tokens_and_targets(), global_batch=8, steps=1):
            worker.backward(model(inputs).sum(), 1)
            if worker._leaf.closes_step:
                with pytest.raises(shoal.ShoalError, match=r"'rows.weight' is of an embedding"):
                    worker.step()
                break
