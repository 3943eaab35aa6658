"""What is not of the run is refused with its reason, on both sides, and the run goes on."""

from __future__ import annotations

import functools
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import served
import torch
import training
from served import Crew
from training import Case

from shoal.errors import ShoalError
from shoal.strategy.presets import async_ps, ssp, sync_ps
from shoal.strategy.serving import protocol as p
from shoal.strategy.serving.describe_model import describe_model
from shoal.strategy.serving.link import Link
from shoal.strategy.serving.shard import MOST_WAITING
from shoal.wire.keys import PLAIN_JOB
from shoal.wire.ledger import Ledger
from shoal.wire.messages import Caller

CASE = Case(optimizer="fused", clip=0.05, steps=40, bucket=2048)


def nap(seconds: float):
    return lambda worker: time.sleep(seconds)


@contextmanager
def honest(
    strategy: Any, case: Case = CASE, *, workers: int = 1, pause: float = 0.01, **options: Any
) -> Iterator[Any]:
    """A run with honest workers in it, which must end well, whatever happens meanwhile."""
    with served.serving(strategy, bucket=case.bucket, **options) as run, Crew() as crew:
        address = run.address
        children = [
            crew.start(lambda: served.train(case, strategy, address, before=nap(pause)))
            for _ in range(workers)
        ]
        run.until(lambda run: run.steps >= 2)
        yield run, crew
        crew.wait()
        run.ends_well()
        for child in children:
            found = crew.result(child)
            assert found and found["finished"] and found["problem"] is None, found
            if strategy.exact:
                assert found["sha"] == training.sha(1, case)


# --- workers of something else

WRONG = {
    "strategy": (ssp(2), {}, "its strategy is ssp, where the run's is sync_ps"),
    "model": (sync_ps(), {"net": "wide"}, "its model is another one: .* has shape"),
    "optimizer": (
        sync_ps(),
        {"optimizer": "sgd"},
        "its optimizer is SGD, where the run's is AdamW",
    ),
    "options": (sync_ps(), {"optimizer": "foreach"}, "its groups is .*foreach"),
    "clip": (sync_ps(), {"clip": None}, "its clip is None, where the run's is 0.05"),
    "seed": (sync_ps(), {"seed": 5}, "its seed is 5, where the run's is 0"),
    "batch": (sync_ps(), {"global_batch": 8}, "its global_batch is 8, where the run's is 16"),
    "length": (sync_ps(), {"samples": 20}, "its length is 20, where the run's is 53"),
    "end": (sync_ps(), {"steps": 4}, "its end is 64, where the run's is 640"),
}


def test_a_worker_of_something_else_is_refused_with_the_reason_on_both_sides():
    with honest(sync_ps()) as (run, crew):
        children = {
            name: crew.start(
                lambda s=strategy, c=changes: served.train(
                    replace(CASE, **c), s, run.address, timeout=20
                )
            )
            for name, (strategy, changes, _) in WRONG.items()
        }
    for name, (*_, reason) in WRONG.items():
        problem = crew.kept[children[name]]["problem"]
        assert re.search(reason, problem), (name, problem)
        assert any(re.search(reason, event) for event in run.events), (name, run.events)


def test_a_worker_with_other_data_is_refused():
    def join(data: str) -> str:
        from shoal.strategy.serving.worker import ServedWorker

        model = training.build(CASE)
        optimizer = training.build_optimizer(CASE, model)
        try:
            worker = ServedWorker(model, optimizer, strategy=sync_ps(), seed=0, clip=None,
                                  address=address, key=None, job=PLAIN_JOB, timeout=20,
                                  about={"data": data})  # fmt: skip
        except ShoalError as error:
            return str(error)
        time.sleep(1.0)
        worker.close()
        return ""

    with served.serving(sync_ps(), bucket=CASE.bucket) as run, Crew() as crew:
        address = run.address
        first = crew.start(lambda: join("corpus one"))
        time.sleep(0.3)
        second = crew.start(lambda: join("corpus two"))
        crew.wait(20)
        assert crew.result(first) == ""
        assert "its data is corpus two, where the run's is corpus one" in crew.result(second)


# --- workers that stop


@pytest.mark.parametrize("strategy", [sync_ps(), async_ps(warm_up=0)], ids=["sync_ps", "async_ps"])
def test_a_worker_that_is_stopped_for_long_is_given_up_and_may_come_again(strategy):
    case = replace(CASE, steps=70)
    with honest(strategy, case, patience=0.8) as (run, crew):
        child = crew.start(lambda: served.train(case, strategy, run.address, before=nap(0.01)))
        run.until(lambda run: any("1" in commit["staleness"] for commit in run.lines("commit")))
        os.kill(child, signal.SIGSTOP)
        before = run.steps
        time.sleep(2.4)
        assert any("silent" in event and "worker 1" in event for event in run.events)
        assert run.steps > before + 2  # the others have not waited for it
        os.kill(child, signal.SIGCONT)
    assert run.counts["retried"] > 0
    assert sum(run.refused.values()) > 0
    assert set(run.refused) == {"a membership that has ended"}
    assert crew.kept[child]["finished"]
    last = [commit for commit in run.lines("commit") if "1" in commit["staleness"]][-1]
    assert last["step"] > before + 2  # it has come again


def test_a_worker_that_is_stopped_for_a_moment_is_waited_for():
    with honest(sync_ps(), patience=1.6) as (run, crew):
        child = crew.start(lambda: served.train(CASE, sync_ps(), run.address, before=nap(0.01)))
        run.until(lambda run: any("1" in commit["staleness"] for commit in run.lines("commit")))
        os.kill(child, signal.SIGSTOP)
        time.sleep(0.8)
        os.kill(child, signal.SIGCONT)
    assert not [event for event in run.events if "silent" in event]
    assert crew.kept[child]["finished"]


def test_a_worker_that_only_waits_is_not_taken_for_dead():
    """One leaf a step: there is never work for the second worker, for longer than the patience."""
    case = replace(CASE, micro_batch=16, steps=12)
    with served.serving(sync_ps(), bucket=case.bucket, patience=0.5) as run:
        address = run.address
        joined = served.meet(2)
        one = functools.partial(
            served.train, case, sync_ps(), address, joined=joined, before=nap(0.2)
        )
        served.work([one] * 2, 60)
        run.ends_well()
        assert not run.events


# --- numbers that are none


def spoil(worker: Any, model: torch.nn.Module, total: torch.Tensor) -> torch.Tensor:
    return total + (next(model.parameters()).flatten()[0] * float("nan"))


def spoil_gradient(worker: Any, model: torch.nn.Module, total: torch.Tensor) -> torch.Tensor:
    return total + training.POISONS["nan"](next(model.parameters()).flatten()[0])


@pytest.mark.parametrize("spoiling", [spoil, spoil_gradient], ids=["loss", "gradient"])
@pytest.mark.parametrize("strategy", [sync_ps(2), async_ps(2, warm_up=0)],
                         ids=["sync_ps", "async_ps"])  # fmt: skip
def test_one_workers_nan_is_refused_counted_and_named_and_others_do_its_part(strategy, spoiling):
    with honest(strategy, servers=2, pause=0.004) as (run, crew):
        crew.start(lambda: served.train(CASE, strategy, run.address, total_of=spoiling,
                                        before=nap(0.01)))  # fmt: skip
    assert run.counts["refused"] > 3
    bad = [event for event in run.events if "not finite: refused" in event]
    assert len(bad) == run.counts["refused"]
    assert all(event.startswith("worker 1:") for event in bad)


def test_samples_that_nobody_can_learn_from_end_the_run_with_their_numbers():
    def train(address: str) -> Any:
        def total_of(worker: Any, model: Any, total: torch.Tensor) -> torch.Tensor:
            return spoil(worker, model, total) if worker.steps == 3 else total

        return served.train(CASE, sync_ps(), address, total_of=total_of, joined=joined)

    with served.serving(sync_ps(), bucket=CASE.bucket) as run:
        address, joined = run.address, served.meet(2)
        found = served.work([lambda: train(address)] * 2, 60)
        run.wait()
        (end,) = run.lines("end")
    assert "samples" in end["failure"] and "step 4" in end["failure"]
    assert {worker["problem"] for worker in found} == {end["failure"]}
    assert run.steps == 3


# --- hostile peers


class Peer:
    """A member of the run that says what it is told to say."""

    def __init__(self, address: str) -> None:
        model = training.build(CASE)
        described = describe_model(model, training.build_optimizer(CASE, model), CASE.clip)
        self.link = Link(address, Ledger(), key=None, job=PLAIN_JOB, timeout=10)
        self.welcome = self.link.connect(p.Hello(rank=-1, strategy="sync_ps"), described)
        self.caller = self.link._callers[0]

    def say(self, kind: Any, payload: Any = None, *, epoch: int = 0, **fields: Any) -> None:
        header = kind(worker=self.welcome.worker, epoch=self.welcome.epoch + epoch, **fields)
        self.caller.send(header, payload)

    def hears(self, kind: Any, seconds: float = 5) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            got = self.caller.receive(0.2)
            if got is not None and isinstance(got[0], kind):
                return True
        return False


def done(**changes: Any) -> dict[str, Any]:
    model = training.build(CASE)
    groups = training.build_optimizer(CASE, model).param_groups
    options = [{k: v for k, v in group.items() if k != "params"} for group in groups]
    return dict(lease=1, total=1.0, count=1, options=options, seconds=1.0) | changes


WORDS = {
    "bucket 99 is not one": (p.Part, {"lease": 10**15, "bucket": 99}, 8192),
    "bucket -1 is not one": (p.Part, {"lease": 10**15, "bucket": -1}, 8192),
    "8 bytes where": (p.Part, {"lease": 10**15, "bucket": 0}, 8),
    "0 bytes where": (p.Part, {"lease": 10**15, "bucket": 0}, None),
    "another worker's to bring": (p.Initial, {"bucket": 0}, 8192),
    "a constant that does not exist": (p.Fixed, {"number": 0, "start": 0}, 8),
    "impossible figures": (p.Done, done(seconds=-1.0), None),
    "impossible figures ": (p.Done, done(count=-5), None),
    "options of another optimizer": (p.Done, done(options=[]), None),
    "options of another optimizer ": (
        p.Done, done(options=[o | {"lr": "much"} for o in done()["options"]]), None),
}  # fmt: skip


def test_what_no_worker_of_the_run_would_send_is_refused_with_the_reason():
    with honest(sync_ps()) as (run, _):
        for reason, (kind, fields, size) in WORDS.items():
            peer = Peer(run.address)
            peer.say(kind, None if size is None else memoryview(bytearray(size)), **fields)
            with pytest.raises(ShoalError, match=reason.strip()):
                peer.hears(p.Over)
            peer.link.close()


def test_a_worker_gives_no_orders():
    orders = [
        p.Apply(number=1, factor=1.0), p.Drop(leases=[0]), p.Quit(), p.Save(number=1),
        p.Prepare(number=1, leaves=0, shares=[], count=1, members=1, options=[]),
        p.Arrived(index=0, lease=0, finite=True),
        p.Register(index=0, address="tcp://127.0.0.1:1"), p.Serve(servers=1, resume=None),
        p.Applied(index=0, number=1), p.Failed(index=0, problem="so there"),
    ]  # fmt: skip
    with honest(sync_ps(2), servers=2) as (run, _):
        for address in (run.address, run.addresses[1]):
            for order in orders:
                caller = Caller(address, p.TO_WORKER, Ledger(), key=None, job=PLAIN_JOB)
                caller.send(order)
                with pytest.raises(ShoalError, match=f"may not send {type(order).__name__}"):
                    caller.receive(5)
                caller.close()


@pytest.mark.slow
def test_messages_of_a_membership_that_has_ended_change_nothing():
    with honest(sync_ps()) as (run, _):
        peer = Peer(run.address)
        for kind, fields in ((p.Stop, {"reason": "no"}), (p.Leave, {}), (p.Done, done())):
            peer.say(kind, epoch=-1, **fields)
            assert peer.hears(p.Stale)
        peer.link.close()
    assert run.refused["a membership that has ended"] == 3


def test_contributions_that_nobody_asked_for_do_not_pile_up():
    """Whole ones are dropped; parts of ever more of them are refused, and go with their sender."""
    with honest(sync_ps()) as (run, _):
        peer = Peer(run.address)
        piece = memoryview(bytearray(8192))
        for lease in range(MOST_WAITING + 40):
            peer.say(p.Part, piece, lease=10**15 + lease, bucket=0)
            if lease < 20:
                peer.say(p.Part, piece, lease=10**15 + lease, bucket=1)
                peer.say(p.Part, piece[:4096], lease=10**15 + lease, bucket=2)
        with pytest.raises(ShoalError, match=f"more than {MOST_WAITING} contributions"):
            peer.hears(p.Over)
        peer.link.close()


def test_a_part_of_a_lease_is_its_holders_to_send():
    with honest(sync_ps()) as (run, _):
        peers = [Peer(run.address) for _ in range(2)]
        piece = memoryview(bytearray(8192))
        peers[0].say(p.Part, piece, lease=10**15, bucket=0)
        peers[0].link.flush()
        time.sleep(0.2)
        peers[1].say(p.Part, piece, lease=10**15, bucket=1)
        with pytest.raises(ShoalError, match="is another worker's"):
            peers[1].hears(p.Over)
        for peer in peers:
            peer.link.close()


def test_a_slow_reader_keeps_nobody_waiting():
    with honest(sync_ps(), workers=2, pause=0.005) as (run, _):
        peer = Peer(run.address)
        for _ in range(2000):
            peer.say(p.Pull)
        before = run.steps
        run.until(lambda run: run.steps > before + 10)
        peer.link.close()


def test_a_run_that_cannot_be_is_refused_before_it_is_one():
    plan = p.Plan(seed=0, length=53, global_batch=16, micro_batch=2, end=64)
    with served.serving(sync_ps(), bucket=CASE.bucket) as run:
        for changes in ({"global_batch": 0}, {"micro_batch": 3}, {"end": -1}, {"length": 0}):
            peer = Peer(run.address)
            model = training.build(CASE)
            if peer.welcome.initialise:
                from shoal.strategy.serving.replica import Replica

                named = list(model.named_parameters())
                described = describe_model(model, training.build_optimizer(CASE, model), CASE.clip)
                served.layout.BUCKET = CASE.bucket
                Replica(named, sync_ps().codec, 1).bring(peer.link, model, described)
            fields = {f: getattr(plan, f) for f in plan.__struct_fields__} | changes
            peer.say(p.Begin, plan=p.Plan(**fields))
            with pytest.raises(ShoalError, match="refuses"):
                peer.hears(p.Go)
            peer.link.close()
        address = run.address
        (found,) = served.work([lambda: served.train(CASE, sync_ps(), address)], 30)
        run.ends_well()
    assert found["sha"] == training.sha(1, CASE)


def test_servers_that_are_gone_are_missed_within_the_timeout():
    with served.serving(sync_ps(), bucket=CASE.bucket) as run, Crew() as crew:
        address = run.address
        child = crew.start(
            lambda: served.train(CASE, sync_ps(), address, before=nap(0.02), timeout=2)
        )
        run.until(lambda run: run.steps >= 2)
        served.end(run.children)
        began = time.monotonic()
        crew.wait(20)
        assert time.monotonic() - began < 8
        assert "nobody answers" in crew.result(child)["problem"]


@pytest.mark.slow
def test_the_loss_of_another_server_ends_the_run_with_a_sentence():
    with served.serving(sync_ps(2), servers=2, bucket=CASE.bucket) as run, Crew() as crew:
        address = run.address
        child = crew.start(
            lambda: served.train(CASE, sync_ps(2), address, before=nap(0.02), timeout=10)
        )
        run.until(lambda run: run.steps >= 2)
        served.end([run.children.pop()])
        began = time.monotonic()
        run.wait(60)
        crew.wait(20)
        assert time.monotonic() - began < 60
    assert "nobody answers" in run.lines("end")[0]["failure"]
    assert crew.kept[child]["problem"]
