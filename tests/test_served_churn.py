"""Workers die and come at any moment; every sample is committed once, and exact stays exact."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import served
import training
from served import Crew
from training import Case

from shoal.strategy.parts import Strategy
from shoal.strategy.presets import async_diloco, async_ps, ssp, sync_ps

pytestmark = pytest.mark.slow

CASE = Case(optimizer="fused", clip=0.05, steps=60, bucket=2048)


def churn(
    strategy: Strategy, case: Case, *, servers: int, deaths: int, seed: int, nap: float = 0.006
) -> tuple[list[dict], dict]:
    """A run in which a worker dies and another one comes again and again. What those that saw
    its end found, and its counts."""
    chance = random.Random(seed)
    with served.serving(strategy, servers=servers, bucket=case.bucket) as noted, Crew() as crew:
        address = noted.address

        def work() -> dict:
            return served.train(case, strategy, address, before=lambda worker: time.sleep(nap))

        workers = [crew.start(work) for _ in range(3)]
        for _ in range(deaths):
            time.sleep(chance.uniform(0.05, 0.3))
            crew.look()
            if not crew.running:
                break
            crew.kill(chance.choice(crew.running))
            workers.append(crew.start(work))
        crew.wait()
        counts = noted.ends_well()
        died = [text for text in noted.events if "connection has ended" in text]
        assert len(died) >= min(deaths, 3), noted.events
        found = [result for result in crew.results() if result["finished"]]
    assert found
    return found, counts


@pytest.mark.parametrize("make, servers", [(lambda: sync_ps(2), 2), (lambda: ssp(0), 1)])
def test_exact_is_exact_although_workers_die(make: Callable[[], Strategy], servers):
    found, counts = churn(make(), CASE, servers=servers, deaths=8, seed=servers)
    assert {worker["sha"] for worker in found} == {training.sha(1, CASE)}
    assert counts["retried"] > 0


@pytest.mark.parametrize(
    "make, servers",
    [
        (lambda: ssp(2, 2), 2),
        (lambda: async_ps(2, warm_up=0.2), 2),
        (lambda: async_diloco(inner_steps=3, servers=2, warm_up=0.2), 2),
    ],
    ids=["ssp", "async_ps", "async_diloco"],
)
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow),
                                  pytest.param(3, marks=pytest.mark.slow)])  # fmt: skip
def test_every_sample_is_committed_once_although_workers_die(make, servers, seed):
    case = replace(CASE, clip=None, steps=80)
    found, counts = churn(make(), case, servers=servers, deaths=8, seed=seed)
    assert len({worker["sha"] for worker in found}) == 1
    assert counts["retried"] > 0


def test_the_worker_that_brings_the_weights_may_die_of_it():
    """The next one brings them; nobody waits for ever."""
    case = replace(CASE, steps=5)
    strategy = sync_ps(2)

    def die(*_: object) -> None:
        served.os._exit(1)

    def half() -> None:
        from shoal.strategy.serving.link import Link

        push, count = Link.push, [0]

        def breaking(link, server, header, payload):
            push(link, server, header, payload)
            count[0] += 1
            if count[0] == 2:
                link.flush()
                time.sleep(0.3)
                die()

        Link.push = breaking
        served.train(case, strategy, address)

    with served.serving(strategy, servers=2, bucket=1024) as noted, Crew() as crew:
        address = noted.address
        crew.start(half)
        time.sleep(0.2)
        small = replace(case, bucket=1024)
        for _ in range(2):
            crew.start(lambda: served.train(small, strategy, address))
        crew.wait()
        noted.ends_well()
        assert {worker["sha"] for worker in crew.results()} == {training.sha(1, case)}
