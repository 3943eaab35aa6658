"""Every combination of parts runs, or is refused with both parts, the reason and a way out."""

import itertools
import re
from dataclasses import replace

import pytest
import torch
import torch._dynamo  # what the first optimizer of each forked server would import
from served import serving, work
from torch import nn

import shoal
from shoal.codec.catalogue import CODECS, codec_named
from shoal.codec.identity import Identity
from shoal.errors import ShoalError
from shoal.strategy.compat import RULES, refusal, require_legal
from shoal.strategy.parts import (
    BoundedStaleness,
    Delta,
    EveryStep,
    FreeRunning,
    Gradient,
    Outer,
    Phase,
    Servers,
    SharedMemory,
    Strategy,
    Workers,
)
from shoal.strategy.presets import PRESETS, named

PAYLOADS = [Gradient(), Delta(inner_steps=3), Delta(inner_steps=4, fragments=2, delay=1, mix=0.5)]
OWNERS = [Workers(), Servers(count=2), SharedMemory()]
TIMINGS = [EveryStep(), BoundedStaleness(bound=2), FreeRunning()]
UPDATES = ["everyone", "owner"]
CODEC_NAMES = list(CODECS)
FIRST = [
    None,
    Phase(strategy=named("ddp"), share=0.3),
    Phase(strategy=named("zero1"), share=0.3),
    Phase(strategy=shoal.sync_ps(servers=2), share=0.3),
]
TABLE = [
    Strategy(name="mine", payload=payload, owner=owner, timing=timing, update=update,
             codec=codec_named(codec), first=first)
    for payload, owner, timing, update, codec, first in itertools.product(
        PAYLOADS, OWNERS, TIMINGS, UPDATES, CODEC_NAMES, FIRST
    )
]  # fmt: skip
BUILT = [strategy for strategy in TABLE if refusal(strategy) is None]


def parts_of(strategy: Strategy) -> dict[str, str]:
    """The words by which a refusal may name each part."""
    return {
        "payload": type(strategy.payload).__name__,
        "owner": type(strategy.owner).__name__,
        "timing": type(strategy.timing).__name__,
        "update": strategy.update,
        "codec": type(strategy.codec).__name__,
        "first": "first phase" if strategy.first else "",
    }


def served_ten_steps(strategy: Strategy) -> int:
    def train() -> int:
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with shoal.join_served(model, optimizer, strategy=strategy, server=address) as worker:
            before = worker.weights_hash()
            for batch in worker.batches([torch.ones(2)] * 4, global_batch=2, steps=10):
                worker.backward(model(batch).sum(), len(batch))
                worker.step()
            assert worker.finished and worker.weights_hash() != before
            return worker.steps + 1

    require_legal(strategy)
    with serving(strategy, servers=2) as run:
        address = run.address
        return work([train])[0]


def trained_ten_steps(strategy: Strategy) -> int:
    if isinstance(strategy.owner, Servers):
        return served_ten_steps(strategy)
    model = nn.Linear(2, 1)
    with shoal.join(
        model, torch.optim.SGD(model.parameters(), lr=0.01), strategy=strategy
    ) as worker:
        before = worker.weights_hash()
        for batch in worker.batches([torch.ones(2)] * 4, global_batch=2, steps=10):
            worker.backward(model(batch).sum(), len(batch))
            worker.step()
        assert worker.weights_hash() != before
        return worker.steps


def test_what_runs_is_what_workers_own_together_servers_own_or_all_share():
    for strategy in TABLE:
        first = strategy.first
        legal = (
            isinstance(strategy.owner, Workers)
            and isinstance(strategy.timing, EveryStep)
            and (
                first is None
                or (
                    first.strategy.update == "everyone"
                    and (isinstance(strategy.payload, Delta) or strategy.update == "everyone")
                )
            )
        )
        one_copy = (
            isinstance(strategy.owner, SharedMemory)
            and isinstance(strategy.payload, Gradient)
            and isinstance(strategy.timing, FreeRunning)
            and type(strategy.codec) is Identity
            and strategy.update == "everyone"
            and first is None
        )
        local = isinstance(strategy.payload, Delta)
        served = (
            isinstance(strategy.owner, Servers)
            and strategy.update == "owner"
            and (not local or (isinstance(strategy.timing, FreeRunning)
                               and strategy.payload.fragments == 1))
            and (first is None or (first.strategy.owner == strategy.owner
                                   and first.strategy.codec == strategy.codec))
        )  # fmt: skip
        assert (strategy in BUILT) == (legal or one_copy or served), (strategy, refusal(strategy))


@pytest.mark.parametrize("payload", PAYLOADS, ids=str)
@pytest.mark.parametrize("update", UPDATES)
def test_every_combination_that_is_not_refused_trains_ten_steps(payload, update):
    for strategy in BUILT:
        if (strategy.payload, strategy.update) == (payload, update):
            assert trained_ten_steps(strategy) == 10, strategy


def test_a_combination_is_refused_before_anything_starts_with_both_parts_and_a_way_out():
    for strategy in TABLE:
        if strategy in BUILT:
            continue
        with pytest.raises(ShoalError) as refused:
            trained_ten_steps(strategy)
        told = re.fullmatch(
            r"strategy 'mine' cannot run: (.+) do not go together, because (.+); "
            r"the nearest that runs is (.+)",
            str(refused.value),
        )
        assert told, str(refused.value)
        clash, reason, nearest = told.groups()
        parts = parts_of(strategy).items()
        assert any(part and re.search(rf"\b{part}\b", clash) for _, part in parts), clash
        assert reason and nearest
        kinds = [kind for kind in parts_of(strategy) if re.search(kind, clash)]
        assert len(kinds) >= 2, clash


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs(name):
    assert refusal(named(name)) is None


def test_every_rule_of_the_table_is_the_reason_of_some_combination():
    buffered = replace(shoal.async_diloco(), timing=FreeRunning(buffer=1))
    delta = Delta(inner_steps=4, outer=Outer(momentum=0.9, annealed=True))
    annealed = replace(shoal.async_diloco(), payload=delta)
    every = [*TABLE, buffered, annealed]
    refused = [strategy for strategy in every if refusal(strategy) is not None]
    used = [next(rule for rule in RULES if rule.clash(s)) for s in refused]
    assert [rule.reason for rule in RULES if rule not in used] == []


def test_an_unknown_strategy_gets_a_suggestion():
    with pytest.raises(ShoalError, match="zero1"):
        named("zero")


def test_exactness_is_a_property_of_the_parts():
    for strategy in BUILT:
        exact = (
            isinstance(strategy.payload, Gradient)
            and type(strategy.codec) is Identity
            and isinstance(strategy.timing, EveryStep)
        )
        assert strategy.exact == exact, strategy
    assert not any(named(name).exact for name in ("async_ps", "hogwild", "diloco", "local_sgd"))


# --- models and optimizers that a strategy cannot serve ---


def joined(model: nn.Module, optimizer=None, strategy=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    return shoal.join(model, optimizer, strategy=strategy)


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.Adafactor])
def test_zero1_refuses_an_optimizer_that_must_see_whole_parameters(kind):
    model = nn.Linear(3, 2)
    with pytest.raises(ShoalError, match=rf"{kind.__name__} cannot be sharded.*use strategy ddp"):
        joined(model, kind(model.parameters()), shoal.zero1())


def test_ddp_takes_such_an_optimizer():
    model = nn.Linear(3, 2)
    worker = joined(model, torch.optim.Adafactor(model.parameters()), shoal.ddp())
    for batch in worker.batches([torch.ones(3)] * 4, global_batch=2, steps=2):
        worker.backward(model(batch).sum(), len(batch))
        worker.step()
    assert worker.steps == 2


def test_a_subclass_of_an_elementwise_optimizer_is_not_trusted_to_be_one():
    class Mine(torch.optim.SGD):
        pass

    model = nn.Linear(3, 2)
    with pytest.raises(ShoalError, match="Mine cannot be sharded"):
        joined(model, Mine(model.parameters(), lr=0.1), shoal.zero1())


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True)]
)
def test_a_layer_with_running_statistics_is_refused_by_name(layer):
    with pytest.raises(
        ShoalError, match=rf"'1' \({type(layer).__name__}\).*GroupNorm or LayerNorm"
    ):
        joined(nn.Sequential(nn.Linear(2, 3), layer))


def test_a_batch_norm_without_running_statistics_is_taken():
    joined(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False)))


def test_a_legal_strategy_is_not_refused():
    require_legal(shoal.ddp())
    require_legal(shoal.zero1())
