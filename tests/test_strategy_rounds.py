"""Local steps and rounds: what the papers' formulas give, and what every worker shares."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from local import Local, in_one_process, same, trained
from training import Case, difference, flat, plainly
from training import trained as exactly

from shoal.codec.bf16 import BF16
from shoal.codec.block import Int8
from shoal.codec.topk import TopK
from shoal.errors import ShoalError
from shoal.strategy.parts import Delta, EveryStep, Outer, Phase, Strategy, Workers
from shoal.strategy.presets import ddp, local_sgd

WIRES = ["shared_memory", "collective"]


pytestmark = pytest.mark.usefixtures("one_thread")


def delta(update="owner", codec=None, first=None, **settings) -> Strategy:
    strategy = Strategy(name="mine", payload=Delta(**settings), owner=Workers(),
                        timing=EveryStep(), update=update, first=first)  # fmt: skip
    return replace(strategy, codec=codec) if codec else strategy


# --- identities ---


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_one_local_step_of_sgd_and_an_average_is_ddp_of_sgd(workers, wire):
    case = Case(wire=wire, samples=64, steps=6)
    found = trained(workers, Local(strategy=local_sgd(inner_steps=1), case=case))
    assert difference(same("weights", found), plainly(case)["weights"]) <= 1e-6


def test_one_local_step_and_an_outer_sgd_of_rate_one_is_ddp_of_sgd():
    case = Case(samples=64, steps=6)
    strategy = delta(inner_steps=1, outer=Outer(lr=1.0))
    found = trained(3, Local(strategy=strategy, case=case))
    assert difference(same("weights", found), plainly(case)["weights"]) <= 1e-6


def test_averages_of_one_worker_are_the_plain_loop():
    case = Case(optimizer="fused", samples=64, steps=7)
    found = trained(1, Local(strategy=local_sgd(inner_steps=3), case=case))
    assert difference(found[0]["weights"], plainly(case)["weights"]) <= 1e-6


@pytest.mark.parametrize("update", ["owner", "everyone"])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("annealed", [False, True])
def test_diloco_is_the_papers_formula(annealed, workers, update):
    """v = 0.9 v + mean; theta -= 0.7 (mean + 0.9 v), with means weighted by targets.

    Annealed, v fades by the rates of the steps of a round, which all fade by 0.8.
    """
    case = Case(
        net="tokens",
        optimizer="fused",
        samples=64,
        global_batch=12,
        micro_batch=2,
        steps=12,
        fade=0.8,
    )
    momentum = 0.9 * 0.8**4 if annealed else 0.9
    state: dict[str, list] = {}

    def outer(number, models, counts):
        state.setdefault("weights", [0] * workers)
        state["weights"] = [w + c for w, c in zip(state["weights"], counts, strict=True)]
        if number == 1:
            return
        if number % 4:
            return
        total = sum(state["weights"])
        with torch.no_grad():
            for index, old in enumerate(state["replica"]):
                mean = sum(
                    (w / total) * (old - list(m.parameters())[index])
                    for w, m in zip(state["weights"], models, strict=True)
                )
                state["v"][index] = momentum * state["v"][index] + mean
                new = old - 0.7 * (mean + 0.9 * state["v"][index])
                state["replica"][index] = new
                for model in models:
                    list(model.parameters())[index].copy_(new)
        state["weights"] = [0] * workers

    from training import build

    start = build(case)
    state["replica"] = [p.detach().clone() for p in start.parameters()]
    state["v"] = [torch.zeros_like(p) for p in start.parameters()]
    models = in_one_process(case, workers, outer)
    outer_step = Outer(lr=0.7, momentum=0.9, nesterov=True, annealed=annealed)
    strategy = delta(update=update, inner_steps=4, outer=outer_step)
    found = trained(workers, Local(strategy=strategy, case=case))
    assert difference(same("weights", found), flat(models[0].parameters())) <= 1e-5


def test_both_places_of_the_outer_step_give_the_same():
    case = Case(optimizer="fused", samples=64, steps=8)
    settings = {"inner_steps": 2, "outer": Outer(lr=0.7, momentum=0.9, nesterov=True)}
    owner, everyone = (
        same("weights", trained(2, Local(strategy=delta(update=update, **settings), case=case)))
        for update in ("owner", "everyone")
    )
    assert difference(owner, everyone) <= 1e-6


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 8])
def test_a_phase_too_short_for_the_delays_takes_in_every_delta_once(steps):
    settings = {"inner_steps": 9, "fragments": 3, "delay": 2,
                "outer": Outer(lr=0.7, momentum=0.9, nesterov=True)}  # fmt: skip
    case = Case(samples=64, steps=steps)
    owner, everyone = (
        same("weights", trained(2, Local(strategy=delta(update=update, **settings), case=case)))
        for update in ("owner", "everyone")
    )
    assert difference(owner, everyone) == 0


def test_an_annealed_outer_step_after_every_step_of_sgd_is_torchs_sgd_with_momentum():
    """Whose velocity is in units of gradients, so that it is paid out at the rate of the day."""
    case = Case(optimizer="gentle", samples=64, steps=8, fade=0.7)
    theirs = plainly(replace(case, optimizer="nesterov"))["weights"]
    for annealed in (True, False):
        outer = Outer(momentum=0.9, nesterov=True, annealed=annealed)
        found = trained(2, Local(strategy=delta(inner_steps=1, outer=outer), case=case))
        assert (difference(same("weights", found), theirs) <= 1e-6) == annealed


# --- what the workers share ---

FORMS = {
    "one fragment": delta(inner_steps=4),
    "fragments": delta(inner_steps=4, fragments=2),
    "delayed": delta(inner_steps=6, fragments=2, delay=2, mix=0.5),
    "delayed by one": delta(inner_steps=4, fragments=2, delay=1),
    "coded": delta(inner_steps=4, codec=Int8()),
    "coded for everyone": delta(update="everyone", inner_steps=4, codec=Int8()),
}


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("form", FORMS)
def test_replicas_are_the_same_bits_after_every_step(form, wire):
    case = Case(wire=wire, optimizer="fused", samples=64, steps=13)
    found = trained(3, Local(strategy=FORMS[form], case=case))
    same("sha", found)
    if "delay" not in form:  # others land at the end of the same step
        same("replicas", found)
    assert len(set(found[0]["replicas"])) > 3


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_that_was_agreed_on_is_of_all_targets_since(form):
    case = Case(optimizer="fused", samples=64, steps=12)
    found = trained(3, Local(strategy=FORMS[form], case=case))
    agreed = same("agreed", found)
    told = [loss for loss in agreed if loss is not None]
    assert len(told) == {"fragments": 6, "delayed": 4, "delayed by one": 6}.get(form, 3)
    if form == "one fragment":
        steps = [worker["steps"][:4] for worker in found]
        total = sum(loss * count for mine in steps for _, _, loss, count in mine)
        count = sum(count for mine in steps for *_, count in mine)
        assert told[0] == pytest.approx(total / count, rel=1e-9)


def test_a_run_that_ends_inside_a_round_still_agrees():
    case = Case(samples=37, epochs=1, steps=None, micro_batch=2)  # steps of 16, 16, 5
    for workers in (2, 4):
        found = trained(workers, Local(strategy=local_sgd(inner_steps=30), case=case))
        same("sha", found)
        assert found[0]["steps"][-1][1] == 37
        assert found[0]["agreed"][-1] is not None


def test_a_wish_to_stop_is_agreed_on_at_the_end_of_the_round():
    case = Case(samples=64, steps=20)
    found = trained(2, Local(strategy=local_sgd(inner_steps=4), case=case, stop=(1, 6)))
    assert [len(worker["steps"]) for worker in found] == [8, 8]
    same("sha", found)


def test_the_first_round_takes_what_does_not_divide_so_that_the_last_is_whole():
    for steps, agreed in [(13, [5, 9, 13]), (7, [7]), (8, [4, 8]), (3, [3]), (10, [6, 10])]:
        found = trained(1, Local(strategy=delta(inner_steps=4), case=Case(samples=64, steps=steps)))
        told = [number for number, loss in enumerate(found[0]["agreed"], 1) if loss is not None]
        assert told == agreed


def test_what_is_owed_is_worth_no_more_in_a_last_round_of_few_samples():
    """It once was divided by the targets of that round alone, and spoilt the model at its end."""
    case = Case(net="wide", optimizer="fused", samples=81, epochs=3, steps=None)  # 15 x 16 + 3
    strategy = delta(update="everyone", inner_steps=1, codec=TopK(top=8))
    found = trained(2, Local(strategy=strategy, case=case))
    replicas = [np.frombuffer(r, dtype=np.float32) for r in found[0]["replicas"]]
    assert len(replicas) == 16
    moved = [float(np.linalg.norm(b - a)) for a, b in pairwise(replicas)]
    assert 0 < moved[-1] < 1.5 * max(moved[5:-1])


# --- phases ---


def test_the_first_phase_is_ddp_to_the_bit_and_hands_over_everything():
    case = Case(optimizer="fused", samples=64, steps=10)
    strategy = delta(inner_steps=1, first=Phase(strategy=ddp(), share=0.35))  # 4 of 10 steps
    found = trained(2, Local(strategy=strategy, case=case))
    exact = exactly(2, replace(case, steps=4))
    assert [step[2] for step in found[0]["steps"][:4]] == [step[2] for step in exact[0]["steps"]]
    assert found[0]["phase"] == 1
    # With SGD one local step is ddp's, so the whole run must be ddp's: nothing was lost between.
    plain = Case(optimizer="momentum", samples=64, steps=4)
    handed = trained(2, Local(strategy=replace(strategy), case=replace(plain, steps=5)))
    assert difference(handed[0]["weights"], plainly(replace(plain, steps=5))["weights"]) <= 1e-6


def test_rounds_grow_as_the_rate_decays():
    grown = Delta(inner_steps=4, growth=0.4)
    assert [grown.length_at(rate, 0.5) for rate in (0.4, 0.2, 0.1, 0.05)] == [4, 4, 16, 64]
    assert Delta(inner_steps=4).length_at(1e-9, 0.5) == 4
    even = Delta(inner_steps=4, fragments=2, growth=0.5)
    assert even.length_at(0.1, 0.5) == 24 and even.length_at(0.0, 0.5) == 4
    case = Case(samples=64, steps=20)  # SGD at 0.1
    found = trained(2, Local(strategy=delta(inner_steps=2, growth=0.23), case=case))
    agreed = [number for number, loss in enumerate(found[0]["agreed"], 1) if loss is not None]
    assert agreed == [2, 7, 12, 20]  # the last one takes what would be a short one


def test_rounds_do_not_grow_while_the_rate_still_rises():
    case = Case(samples=64, steps=10, fade=1.01)
    found = trained(2, Local(strategy=delta(inner_steps=2, growth=1.0), case=case))
    agreed = [number for number, loss in enumerate(found[0]["agreed"], 1) if loss is not None]
    assert agreed == [2, 4, 6, 8, 10]


def test_rounds_are_short_while_most_is_learnt():
    ramped = Delta(inner_steps=30, fragments=3, delay=2, ramp=0.2)
    found = [ramped.length_at(0.1, done) for done in (0.0, 0.05, 0.1, 0.15, 0.199, 0.2, 0.9)]
    assert found == [9, 9, 15, 21, 27, 30, 30]
    assert Delta(inner_steps=4, ramp=0.5, growth=0.4).length_at(0.1, 0.5) == 16
    # From step 8 of 32 on rounds are whole; the first of them takes what does not divide.
    case = Case(samples=64, steps=32)
    found = trained(2, Local(strategy=delta(inner_steps=5, ramp=0.25), case=case))
    agreed = [number for number, loss in enumerate(found[0]["agreed"], 1) if loss is not None]
    assert agreed == [1, 2, 3, 4, 6, 9, 17, 22, 27, 32]
    # In a run that ends before they are whole the last is longer instead.
    found = trained(2, Local(strategy=delta(inner_steps=9, ramp=1.0), case=replace(case, steps=10)))
    agreed = [number for number, loss in enumerate(found[0]["agreed"], 1) if loss is not None]
    assert agreed == [1, 2, 3, 5, 10]


# --- bytes ---


@pytest.mark.parametrize("wire", WIRES)
def test_a_round_sends_a_steps_payload_and_nothing_crosses_in_between(wire):
    case = Case(wire=wire, samples=64, steps=8)
    found = trained(2, Local(strategy=delta(inner_steps=4, codec=BF16()), case=case))
    for rank, worker in enumerate(found):
        payload = worker["payload"][0]
        once = payload[1 - rank] + payload[rank]
        assert worker["sent"][4:] == [0, 0, 0, once]


# --- faults ---


@pytest.mark.parametrize("form", ["one fragment", "fragments", "delayed", "coded"])
def test_a_worker_that_is_not_finite_is_refused_named_and_begins_again(form):
    case = Case(optimizer="fused", samples=64, steps=20)
    found = trained(3, Local(strategy=FORMS[form], case=case, spoil=((1, 6),)))
    same("sha", found)
    events = same("events", found)
    assert events and {event[1] for event in events} == {1}
    assert all("not finite" in event[2] for event in events)
    assert events[-1][0] <= 12  # the next round counts again
    assert np.isfinite(found[0]["weights"]).all()


def test_a_round_in_which_all_are_refused_changes_nothing():
    case = Case(optimizer="fused", samples=64, steps=4)
    strategy = delta(inner_steps=4, outer=Outer(lr=0.7, momentum=0.9, nesterov=True))
    found = trained(1, Local(strategy=strategy, case=case, spoil=((0, 2),)))
    from training import build

    assert difference(found[0]["weights"], flat(build(case).parameters())) == 0


@pytest.mark.parametrize("astray", [0, 1, 2])
def test_a_replica_that_differs_is_named_and_repaired(astray):
    case = Case(optimizer="fused", samples=64, steps=16)
    found = trained(3, Local(strategy=delta(inner_steps=4), case=case, flip=((astray, 5),)))
    events = same("events", found)
    assert [event[:2] for event in events] == [(8, astray)] and "replica differed" in events[0][2]
    same("sha", found)
    assert len({worker["replicas"][7] for worker in found}) == 1
    assert len({worker["replicas"][6] for worker in found}) == 2


@pytest.mark.parametrize("astray", [(0, 1), (2, 3)])
def test_all_replicas_that_differ_are_named_and_repaired_from_one_that_does_not(astray):
    case = Case(optimizer="fused", samples=64, steps=8)
    flip = tuple((worker, 5) for worker in astray)
    found = trained(4, Local(strategy=delta(inner_steps=4), case=case, flip=flip))
    assert [event[:2] for event in same("events", found)] == [(8, worker) for worker in astray]
    # Nobody has the wrong values, which are two and more away.
    alone = trained(1, Local(strategy=delta(inner_steps=4), case=case))
    assert np.abs(same("weights", found) - alone[0]["weights"]).max() < 0.5


def test_all_workers_that_are_not_finite_in_a_round_are_named():
    case = Case(optimizer="fused", samples=64, steps=4)
    spoil = ((0, 2), (2, 3))
    found = trained(3, Local(strategy=delta(inner_steps=4), case=case, spoil=spoil))
    assert [event[:2] for event in same("events", found)] == [(4, 0), (4, 2)]


# --- what is refused ---


def test_parts_that_cannot_be_are_refused():
    with pytest.raises(ShoalError, match="multiple of fragments"):
        Delta(inner_steps=10, fragments=3)
    with pytest.raises(ShoalError, match="delay of 5 steps is not below"):
        Delta(inner_steps=10, fragments=2, delay=5)
    with pytest.raises(ShoalError, match="mix is 2"):
        Delta(inner_steps=10, mix=2.0)
    with pytest.raises(ShoalError, match="without momentum"):
        Outer(annealed=True)
    with pytest.raises(ShoalError, match="at least 1"):
        Delta(inner_steps=0)
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ShoalError, match="outer_lr is"):
            Outer(lr=rate)
        with pytest.raises(ShoalError, match="growth is"):
            Delta(inner_steps=4, growth=rate)
    for momentum in (-0.5, 1.0, float("nan")):
        with pytest.raises(ShoalError, match="outer_momentum is"):
            Outer(momentum=momentum)
    with pytest.raises(ShoalError, match="growth has no effect"):
        Delta(inner_steps=4, growth=1.0, ramp=1.0)
    assert Delta(inner_steps=4, growth=1e200).length_at(0.1, 0.5) == 1_000_000
