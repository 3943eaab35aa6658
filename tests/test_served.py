"""What runs on parameter servers must equal: ddp, the plain loop, and the formulas, to the bit."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import served
import torch
import training
from served import run, sha
from training import Case

from shoal.data.order import Order
from shoal.strategy.options import LocalConfig, build_strategy
from shoal.strategy.parts import Delta, FreeRunning, Outer
from shoal.strategy.presets import NESTEROV, async_diloco, async_ps, ssp, sync_ps
from shoal.strategy.serving import protocol as p
from shoal.strategy.serving.delayed_nesterov import DelayedNesterov
from shoal.strategy.serving.describe_model import describe_model
from shoal.strategy.serving.shard import Shard

SGD = Case(bucket=2048)
MASKED = Case(net="tokens", optimizer="momentum", bucket=1024, steps=4)
CLIPPED = Case(optimizer="fused", clip=0.05, bucket=2048)
RAGGED = Case(optimizer="foreach", steps=None, epochs=1.0, bucket=2048)


# --- ddp, to the bit


@pytest.mark.parametrize(
    "case, workers, servers",
    [
        (SGD, 1, 1),
        (SGD, 3, 2),
        (MASKED, 1, 3),
        (MASKED, 2, 1),
        (MASKED, 3, 3),
        (CLIPPED, 2, 2),
        (CLIPPED, 1, 2),
        (RAGGED, 2, 3),
        (RAGGED, 3, 1),
    ],
)
def test_sync_ps_is_ddp_to_the_bit(case, workers, servers):
    assert sha(sync_ps(servers), case, workers=workers, servers=servers) == training.sha(1, case)


@pytest.mark.parametrize("case", [CLIPPED, RAGGED])
def test_ssp_without_slack_is_sync_ps_to_the_bit(case):
    assert sha(ssp(0), case, workers=3, servers=1) == training.sha(1, case)


@pytest.mark.parametrize("case, servers", [(CLIPPED, 1), (RAGGED, 3), (MASKED, 2)])
def test_free_running_with_one_worker_is_the_plain_loop_to_the_bit(case, servers):
    strategy = async_ps(servers, warm_up=0)
    assert sha(strategy, case, servers=servers) == training.sha(1, case)


@pytest.mark.parametrize("buffer", [1, 16])
def test_free_running_of_one_worker_after_a_start_in_step_is_still_the_plain_loop(buffer):
    strategy = replace(async_ps(2, warm_up=0.4), timing=FreeRunning(buffer=buffer))
    assert sha(strategy, CLIPPED, servers=2) == training.sha(1, CLIPPED)


@pytest.mark.parametrize("case", [CLIPPED, MASKED])
def test_losses_and_norms_on_record_are_those_of_ddp_to_the_bit(case):
    _, noted = run(sync_ps(2), case, workers=2, servers=2)
    commits = noted.lines("commit")
    steps = training.trained(1, case)[0]["steps"]
    assert [(c["step"], c["position"], c["loss"]) for c in commits] == [s[:3] for s in steps]
    assert [c["norm"] for c in commits] == [s[4] for s in steps]


# --- free-running


def test_a_buffer_of_one_commits_every_contribution_alone():
    case = replace(SGD, steps=None, epochs=3.0, micro_batch=4)
    strategy = replace(async_ps(warm_up=0), timing=FreeRunning(buffer=1))
    with served.serving(strategy, bucket=2048) as noted:
        address, joined = noted.address, served.meet(3)
        served.work([lambda: served.train(case, strategy, address, joined=joined)] * 3, 60)
        counts = noted.ends_well()
        commits = noted.lines("commit")
    assert all(len(commit["ranges"]) == 1 for commit in commits)
    assert counts["applied"] == len(commits) > -(-3 * 53 // 16)


def test_a_start_in_step_is_in_step_and_what_follows_is_not():
    case = replace(SGD, steps=30, micro_batch=2)
    strategy = async_ps(warm_up=1 / 3)
    _, noted = run(strategy, case, workers=3)
    ages = [[a for each in c["staleness"].values() for a in each] for c in noted.lines("commit")]
    in_step = [each for each, commit in zip(ages, noted.lines("commit"), strict=True)
               if commit["position"] <= 160]  # fmt: skip
    assert len(in_step) == 10 and not any(map(any, in_step))
    assert any(map(any, ages[10:]))


@pytest.mark.parametrize("bound", [0, 1, 2])
def test_nothing_is_staler_than_its_bound(bound):
    case = replace(SGD, steps=25)
    slow = [lambda worker: None, lambda worker: served.time.sleep(0.01)]
    strategy = ssp(bound)
    with served.serving(strategy, bucket=2048) as noted:
        one = functools.partial(
            served.train, case, strategy, noted.address, joined=served.meet(len(slow))
        )
        served.work([functools.partial(one, before=each) for each in slow], 60)
        noted.ends_well()
        ages = {a for c in noted.lines("commit") for each in c["staleness"].values() for a in each}
    assert ages <= set(range(bound + 1))
    assert bool(max(ages)) == bool(bound)


def test_a_slow_worker_gets_less_to_do():
    case = replace(SGD, steps=40, micro_batch=1)
    naps = [0.001, 0.008]
    strategy = async_ps(warm_up=0)

    def train(address, nap, rank):
        return served.train(case, strategy, address, rank=rank, joined=joined,
                            before=lambda worker: served.time.sleep(nap))  # fmt: skip

    with served.serving(strategy, bucket=2048) as noted:
        address, joined = noted.address, served.meet(2)
        found = served.work([lambda r=r: train(address, naps[r], r) for r in range(2)], 60)
        noted.ends_well()
    shares = [sum(count for *_, count in worker["steps"]) for worker in found]
    assert sum(shares) == 40 * 16
    assert shares[0] > 1.5 * shares[1] > 0


# --- local steps


def plain_diloco(case: Case, steps: int, outer: Outer, first: int = 0) -> torch.Tensor:
    """DiLoCo of one worker, as its paper writes it down, after `first` plain steps."""
    model = training.build(case)
    optimizer = training.build_optimizer(case, model)
    samples, order = training.data(case), Order(seed=case.seed, length=case.samples)
    parameters = list(model.parameters())
    theta = [q.detach().clone() for q in parameters]
    momentum = [torch.zeros_like(q) for q in parameters]
    end = case.steps * case.global_batch
    for number, start in enumerate(range(0, end, case.global_batch)):
        chosen = [samples[i] for i in order.indices(start, start + case.global_batch)]
        total, count = training.loss_of(model, torch.utils.data.default_collate(chosen))
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        if number < first:
            theta = [q.detach().clone() for q in parameters]
        elif (number - first + 1) % steps == 0 or number == case.steps - 1:
            with torch.no_grad():
                for q, old, m in zip(parameters, theta, momentum, strict=True):
                    delta = old - q
                    m.mul_(outer.momentum).add_(delta)
                    old.sub_(outer.lr * (delta + outer.momentum * m if outer.nesterov else delta))
                    q.copy_(old)
    return torch.cat([q.detach().flatten() for q in parameters]).double()


@pytest.mark.parametrize("outer", [Outer(), NESTEROV])
@pytest.mark.parametrize("servers", [1, 2])
def test_local_steps_of_one_worker_are_diloco(outer, servers):
    case = replace(SGD, optimizer="momentum", steps=8)
    strategy = async_diloco(inner_steps=3, servers=servers, warm_up=0)
    strategy = replace(strategy, payload=Delta(inner_steps=3, outer=outer))
    (found,), noted = run(strategy, case, servers=servers)
    expected = plain_diloco(case, 3, outer)
    assert [c["position"] for c in noted.lines("commit")] == [48, 96, 128]
    assert training.difference(torch.tensor(found["weights"]), expected) < 1e-6


@pytest.mark.parametrize("servers", [1, 3])
def test_the_optimizer_goes_on_from_where_the_servers_had_it_when_local_steps_begin(servers):
    case = replace(CLIPPED, clip=None, steps=10)
    strategy = async_diloco(inner_steps=2, servers=servers, warm_up=0.4)
    strategy = replace(strategy, payload=Delta(inner_steps=2, outer=NESTEROV))
    (found,), _ = run(strategy, case, servers=servers)
    expected = plain_diloco(case, 2, NESTEROV, first=4)
    forgetful = plain_diloco(replace(case, optimizer="sgd"), 2, NESTEROV, first=4)
    assert training.difference(torch.tensor(found["weights"]), expected) < 1e-5
    assert training.difference(forgetful, expected) > 1e-3


def test_local_steps_of_many_workers_commit_every_sample_once():
    case = replace(SGD, optimizer="momentum", steps=60)
    strategy = async_diloco(inner_steps=4, servers=2, warm_up=0.1)
    with served.serving(strategy, servers=2, bucket=2048) as noted:
        address, joined = noted.address, served.meet(3)
        one = functools.partial(served.train, case, strategy, address, joined=joined)
        found = served.work([one] * 3, 60)
        noted.ends_well()
        losses = [commit["loss"] for commit in noted.lines("commit")]
    assert len({worker["sha"] for worker in found}) == 1
    assert sum(losses[-5:]) < sum(losses[:5])


def test_delayed_nesterov_of_one_worker_is_nesterov():
    outer, generator = Outer(lr=0.7, momentum=0.9, nesterov=True), torch.Generator().manual_seed(0)
    theta = torch.randn(50, generator=generator)
    expected, momentum = theta.double(), torch.zeros(50, dtype=torch.float64)
    delayed = DelayedNesterov(outer, 50)
    for _ in range(20):
        delta = torch.randn(50, generator=generator)
        delayed.step(theta, delta, 1)
        momentum = 0.9 * momentum + delta.double()
        expected -= 0.7 * (delta.double() + 0.9 * momentum)
    assert torch.allclose(theta.double(), expected, rtol=1e-5, atol=1e-5)


def test_delayed_nesterov_of_three_workers_follows_the_formula():
    generator = torch.Generator().manual_seed(1)
    theta = torch.randn(50, generator=generator)
    expected, momentum, gathered = (
        theta.double(),
        torch.zeros(50).double(),
        torch.zeros(50).double(),
    )
    delayed = DelayedNesterov(NESTEROV, 50)
    for arrival in range(1, 22):
        delta = torch.randn(50, generator=generator)
        delayed.step(theta, delta, 3)
        expected -= 0.7 / 3 * delta.double()
        gathered += delta.double()
        if arrival % 3 == 0:
            momentum = 0.9 * momentum + gathered / 3
            expected -= 0.7 * 0.9 * momentum
            gathered.zero_()
    assert torch.allclose(theta.double(), expected, rtol=1e-5, atol=1e-5)
    assert delayed.arrivals == 0


# --- codecs


@pytest.mark.parametrize("codec", ["bf16", "int8", "int4", "e3m0", "topk", "sign", "powersgd"])
@pytest.mark.parametrize("preset", [pytest.param("sync_ps", marks=pytest.mark.slow), "async_ps"])
def test_with_any_codec_both_ways_replicas_are_equal_and_the_loss_falls(preset, codec):
    case = Case(net="dropout", optimizer="plain", steps=40, samples=32, bucket=1024)
    strategy = build_strategy(f"{preset}+{codec}", LocalConfig())
    found, noted = run(strategy, case, workers=2, servers=1)
    losses = [commit["loss"] for commit in noted.lines("commit")]
    assert len({worker["sha"] for worker in found}) == 1
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])


def test_a_codec_is_dealt_with_by_each_server_for_itself():
    case = Case(net="large", optimizer="sgd", steps=10, bucket=1 << 16)
    strategy = build_strategy("async_ps+int8", LocalConfig())
    strategy = replace(strategy, owner=replace(strategy.owner, count=3), first=None)
    with served.serving(strategy, servers=3, bucket=1 << 16) as noted:
        address, joined = noted.address, served.meet(3)
        one = functools.partial(served.train, case, strategy, address, joined=joined)
        found = served.work([one] * 3, 60)
        noted.ends_well()
    assert len({worker["sha"] for worker in found}) == 1


# --- staleness, at a shard


def shard_of(**timing) -> Shard:
    model = torch.nn.Linear(30, 40)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    strategy = replace(async_ps(warm_up=0), timing=FreeRunning(**timing))
    shard = Shard(describe_model(model, optimizer, None), strategy, servers=1, index=0)
    shard.set_weights(0, memoryview(bytearray(shard.weights.nbytes)))
    return shard


def pushed(shard: Shard, peer: bytes, lease: int) -> torch.Tensor:
    """Random numbers that this shard has taken in, zero where no parameter is."""
    values = torch.zeros(shard.portion.elements)
    for part, at in shard.parts:
        values[at : at + part.stop - part.start].normal_()
    assert shard.take(peer, lease, 0, memoryview(values.numpy()).cast("B"))
    return values


def commit(shard: Shard, shares: list[p.Share]) -> None:
    number, count = shard.version + 1, sum(share.count for share in shares)
    shard.prepare(p.Prepare(number=number, leaves=0, shares=shares, count=count, members=2,
                            options=[{"lr": 1.0}]))  # fmt: skip
    shard.apply(p.Apply(number=number, factor=1.0))


def share(lease: int, count: int, weight: float = 1.0) -> p.Share:
    return p.Share(lease=lease, worker=0, start=0, stop=0, count=count, weight=weight)


def test_stale_contributions_weigh_less():
    shard = shard_of(damping=0.5)
    g, h = pushed(shard, b"a", 1), pushed(shard, b"b", 2)
    commit(shard, [share(1, 4), share(2, 12, weight=0.5)])
    assert torch.allclose(shard.weights, -(g + 0.5 * h) / 16, atol=1e-7)


def test_the_coordinator_weighs_by_the_papers_formula():
    from shoal.strategy.serving.commit import Committing, Contribution
    from shoal.strategy.serving.leases import Mode, Pool

    pool = Pool(end=64, global_batch=8, micro_batch=1, modes=[Mode(bound=None, buffer=1)])
    leases = [pool.lease("a", 0.5) for _ in range(4)]
    weights = []
    for lease in leases:
        pool.arrive(lease.number, "a")
        ready = pool.ready()
        done = p.Done(worker=0, epoch=0, lease=lease.number, total=1.0, count=2, options=[],
                      seconds=1.0)  # fmt: skip
        one = Contribution(lease, 0, 0.0, done)
        made = Committing(ready, pool.mode, [one], FreeRunning(damping=0.5), servers=1, members=1)
        weights += [each.weight for each in made.prepare.shares]
        pool.commit(ready)
    assert weights == [1.0, 2**-0.5, 3**-0.5, 0.5]


def test_delay_is_compensated_from_the_parameters_that_a_gradient_was_computed_from():
    shard = shard_of(compensation=0.5)
    shard.remember(b"a")
    then = shard.weights.clone()
    shard.remember(b"b")
    h, g = pushed(shard, b"b", 2), pushed(shard, b"a", 1)
    commit(shard, [share(2, 4)])
    shard.remember(b"a")  # it has pulled for its next lease before this one is applied
    now = shard.weights.clone()
    assert torch.allclose(now, -h / 4, atol=1e-7)
    commit(shard, [share(1, 4)])
    mean = g / 4
    expected = now - (mean + 0.5 * mean * mean * (now - then))
    assert torch.allclose(shard.weights, expected, atol=1e-6)
    assert not torch.allclose(shard.weights, now - mean, atol=1e-3)
