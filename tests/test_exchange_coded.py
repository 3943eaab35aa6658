"""Means that cross the wire coded: what arrives, what is owed, what it weighs."""

from dataclasses import replace

import pytest
import torch
from local import Local, same, trained
from processes import run
from torch import nn
from training import Case, difference, plainly

from shoal.codec.bf16 import BF16
from shoal.codec.block import Int8
from shoal.codec.catalogue import CODECS, codec_named
from shoal.codec.choice import BySize
from shoal.codec.identity import Identity
from shoal.codec.topk import TopK
from shoal.exchange.coded import CodedMean, Said
from shoal.exchange.layout import lay_out
from shoal.exchange.units import HEADER, by_bucket, by_fragment, split, units_of
from shoal.strategy.options import LocalConfig, build_strategy
from shoal.wire.ledger import Ledger
from shoal.wire.open import open_wire
from shoal.world.join import join_world

WIRES = ["shared_memory", "collective"]
CASE = Case(net="wide", optimizer="momentum", samples=64, steps=8, bucket=16384)
CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


def coded(name: str, case: Case = CASE) -> Local:
    return Local(strategy=build_strategy(name, LocalConfig()), case=case)


# --- the gradient ---


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("strategy", ["ddp", "zero1"])
def test_a_fine_codec_is_close_to_the_exact_sum(strategy, workers, wire):
    found = trained(workers, coded(f"{strategy}+bf16", replace(CASE, wire=wire)))
    assert difference(same("weights", found), plainly(CASE)["weights"]) <= 2e-3
    same("sha", found)


@pytest.mark.parametrize("codec", CODECS)
def test_replicas_are_the_same_bits_over_every_wire_and_with_either_update(codec):
    found = {
        (strategy, wire): same(
            "sha", trained(3, coded(f"{strategy}+{codec}", replace(CASE, wire=wire)))
        )
        for strategy in ("ddp", "zero1")
        for wire in WIRES
    }
    for strategy in ("ddp", "zero1"):
        assert len({found[strategy, wire] for wire in WIRES}) == 1


def test_a_small_last_step_leaves_nobody_behind():
    case = replace(CASE, samples=17, epochs=1, steps=None)
    for workers in (2, 4):
        found = trained(workers, coded("ddp+int8", case))
        same("sha", found)
        assert found[0]["steps"][-1][1] == 17


@pytest.mark.parametrize("wire", WIRES)
def test_bytes_are_twice_the_coded_model_less_the_own_share(wire):
    """2 (p - 1) / p of the payload, within 0.5 %, and headers; nothing else but the norm."""
    for workers in (2, 3):
        found = trained(workers, coded("ddp+int8", replace(CASE, wire=wire)))
        payload = sum(sum(group) for group in found[0]["payload"])
        headers = HEADER * workers * len(found[0]["payload"])
        norm = 8 * 4 * (workers - 1)  # a number a unit: fewer than 4 here
        for step in range(8):
            sent = sum(worker["sent"][step] for worker in found)
            formula = 2 * (workers - 1) * (payload - headers)
            assert formula < sent <= formula * 1.005 + 2 * (workers - 1) * headers + workers * norm


# --- what is owed ---


def owe(codec: str, rounds: int) -> list[tuple[float, float, float]]:
    """(greatest mistake of the conservation, of the sum that arrived, what is owed) by round."""
    torch.manual_seed(5)
    world = join_world()
    wire = open_wire("auto", world, Ledger(), device=CPU, timeout=30)
    model = nn.Sequential(nn.Linear(90, 70), nn.Linear(70, 3))
    layout = lay_out(list(model.named_parameters()), world.size)
    mean = CodedMean(layout, codec_named(codec), lambda units: [list(range(len(units)))], wire, CPU)
    generator = torch.Generator().manual_seed(world.rank)
    arrived, contributed = torch.zeros(layout.elements), torch.zeros(layout.elements)
    found = []
    for _ in range(rounds):
        value = torch.zeros(layout.elements)
        for unit in mean.units:
            size = unit.range.length
            value[slice(*unit.range)] = torch.randn(size, generator=generator)
        before = mean.mine.residual.clone()
        mean.send(0, value, Said(1.0))
        sent = torch.zeros_like(value)
        for number, at in mean.groups[0].payloads.items():
            unit = mean.units[number]
            out = sent[slice(*unit.range)].view(unit.spec.shape)
            mean._codecs[number].decode(mean._outgoing[at.start : at.stop], out)
        mistake = sent + mean.mine.residual - value - before
        mean.own(0, lambda _, m: m)
        mean.receive(0, lambda number, r: arrived[slice(*mean.units[number].range)].add_(r))
        contributed += value
        owed = [row for row in wire.gather(mean.mine.residual.double()).wait()]
        theirs = [row for row in wire.gather(mean.owner.residual.double()).wait()]
        everything = [row for row in wire.gather(contributed.double()).wait()]
        missing = sum(everything) / world.size - arrived - sum(owed) / world.size - sum(theirs)
        found.append((float(mistake.abs().max()), float(missing.abs().max()),
                      float(mean.mine.residual.norm())))  # fmt: skip
    world.exchange("done", None)
    wire.close()
    return found


@pytest.mark.parametrize("codec", ["int8", "int4", "e3m0", "sign", "topk", "topk2", "powersgd"])
def test_nothing_is_lost_what_did_not_arrive_is_owed(codec):
    """sent + residual = contribution + old residual; arrived + owed = all contributions' mean."""
    for worker in run(2, owe, codec, 5):
        for mistake, missing, owed in worker:
            assert mistake <= 1e-5 and missing <= 1e-4
            assert owed > 0


def test_a_codec_without_feedback_owes_nothing():
    assert all(owed == 0 for worker in run(2, owe, "bf16", 3) for *_, owed in worker)


# --- units ---


def test_units_are_whole_rows_and_cover_every_parameter_once():
    model = nn.Sequential(nn.Embedding(5000, 96), nn.Linear(96, 7), nn.Linear(7, 300_000))
    layout = lay_out(list(model.named_parameters()), 3)
    units = units_of(layout)
    for place in layout.places:
        mine = [unit for unit in units if unit.spec.name == place.name]
        assert mine[0].start == 0
        assert [u.start + u.range.length for u in mine[:-1]] == [u.start for u in mine[1:]]
        assert sum(unit.range.length for unit in mine) == place.range.length
        assert all(unit.spec.shape[1:] == tuple(place.shape)[1:] for unit in mine)
    for groups in (by_bucket(layout, units), by_fragment(units, 4)):
        assert sorted(n for group in groups for n in group) == list(range(len(units)))


def test_units_and_so_what_is_owed_do_not_depend_on_the_number_of_workers():
    model = nn.Linear(700, 900)
    named = list(model.named_parameters())
    assert units_of(lay_out(named, 1)) == units_of(lay_out(named, 5))


def test_runs_are_about_even():
    assert split(list("abcdef"), [1] * 6, 3) == [["a", "b"], ["c", "d"], ["e", "f"]]
    assert split([], [], 2) == [[], []]
    lengths = [len(part) for part in split(list(range(100)), [1] * 100, 7)]
    assert sum(lengths) == 100 and set(lengths) <= {14, 15}


def test_a_choice_of_codecs_is_a_codec_of_the_whole():
    choice = BySize(limit=1000, small=Identity(), large=TopK(top=16))
    strategy = replace(build_strategy("ddp+int8", LocalConfig()), codec=choice)
    found = trained(2, Local(strategy=strategy, case=CASE))
    same("sha", found)
    assert isinstance(choice.small, Identity) and Int8().feedback == 1 and BF16().feedback == 0
