"""Every combination of parts runs, or is refused with both parts, the reason and a way out."""

import itertools
import re

import pytest
import torch
from torch import nn

import shoal
from shoal.errors import ShoalError
from shoal.strategy.compat import RULES, refusal, require_legal
from shoal.strategy.parts import (
    BoundedStaleness,
    Delta,
    EveryStep,
    FreeRunning,
    Gradient,
    Servers,
    SharedMemory,
    Strategy,
    Workers,
)
from shoal.strategy.presets import PRESETS, named

PAYLOADS = [Gradient(), Delta(inner_steps=3)]
OWNERS = [Workers(), Servers(count=2), SharedMemory()]
TIMINGS = [EveryStep(), BoundedStaleness(bound=2), FreeRunning()]
UPDATES = ["everyone", "owner"]
TABLE = [
    Strategy(name="mine", payload=payload, owner=owner, timing=timing, update=update)
    for payload, owner, timing, update in itertools.product(PAYLOADS, OWNERS, TIMINGS, UPDATES)
]
BUILT = [strategy for strategy in TABLE if refusal(strategy) is None]


def parts_of(strategy: Strategy) -> dict[str, str]:
    """The words by which a refusal may name each part."""
    return {
        "payload": type(strategy.payload).__name__,
        "owner": type(strategy.owner).__name__,
        "timing": type(strategy.timing).__name__,
        "update": strategy.update,
    }


def trained_one_step(strategy: Strategy) -> int:
    model = nn.Linear(2, 1)
    with shoal.join(
        model, torch.optim.SGD(model.parameters(), lr=0.1), strategy=strategy
    ) as worker:
        for batch in worker.batches([torch.ones(2)] * 4, global_batch=2, steps=1):
            worker.backward(model(batch).sum(), len(batch))
            worker.step()
        return worker.steps


def test_the_exact_parts_run_and_nothing_else_does():
    assert [parts_of(strategy) for strategy in BUILT] == [
        {"payload": "Gradient", "owner": "Workers", "timing": "EveryStep", "update": update}
        for update in UPDATES
    ]


@pytest.mark.parametrize("strategy", TABLE, ids=lambda s: " ".join(parts_of(s).values()))
def test_a_combination_runs_or_is_refused_before_anything_starts(strategy):
    if strategy in BUILT:
        assert trained_one_step(strategy) == 1
        return
    with pytest.raises(ShoalError) as refused:
        trained_one_step(strategy)
    told = re.fullmatch(
        r"strategy 'mine' cannot run: (.+) do not go together, because (.+); "
        r"the nearest that runs is (.+)",
        str(refused.value),
    )
    assert told, str(refused.value)
    clash, reason, nearest = told.groups()
    of_this_strategy = [
        kind for kind, part in parts_of(strategy).items() if re.search(rf"\b{part}\b", clash)
    ]
    assert of_this_strategy and reason and nearest


@pytest.mark.parametrize("strategy", TABLE, ids=lambda s: " ".join(parts_of(s).values()))
def test_a_refusal_names_two_of_the_strategys_own_parts(strategy):
    if strategy in BUILT:
        return
    clash = refusal(strategy).split(": ", 1)[1].split(" do not go together")[0]
    named_kinds = {
        kind for kind in ("payload", "owner", "timing", "update") if re.search(kind, clash)
    }
    assert len(named_kinds) == 2, clash


@pytest.mark.parametrize("name", PRESETS)
def test_a_refused_preset_names_itself_and_a_preset_or_part_that_runs(name):
    reason = refusal(named(name))
    if name in ("ddp", "zero1"):
        assert reason is None
    else:
        assert repr(name) in reason
        nearest = reason.rpartition("nearest that runs is ")[2]
        assert refusal(named(nearest)) is None


def test_every_rule_of_the_table_is_the_reason_of_some_combination():
    used = [next(rule for rule in RULES if rule.clash(s)) for s in TABLE if s not in BUILT]
    assert [rule.reason for rule in RULES if rule not in used] == []


def test_an_unknown_strategy_gets_a_suggestion():
    with pytest.raises(ShoalError, match="zero1"):
        named("zero")


def test_exactness_is_a_property_of_the_parts():
    assert all(strategy.exact for strategy in BUILT)
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
