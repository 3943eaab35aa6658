"""The numbers of a page, from histories that are small enough to check by hand."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.report.figures import Measured, Spread, rows, seconds_to, shares, worst_loss
from shoal.report.history import History, Pace, Point
from shoal.report.single import sentence
from shoal.report.table import number, tabulate
from shoal.report.verdict import verdict
from shoal.train.config import RunConfig


def history(held_out, *, sent=0, paces=((6.0, 2.0, 1.0, 1.0),)) -> History:
    """A point every 2 s and 100 tokens; `held_out` has the loss at each, or None."""
    points = [
        Point(step=n, seconds=2.0 * n, tokens=100 * n, bytes=sent * n, loss=9.0, held_out=loss)
        for n, loss in enumerate(held_out, start=1)
    ]
    names = ("computing", "exchanging", "waiting", "data")
    return History(
        folder=Path("run"),
        config=RunConfig(),
        torch="2",
        unit="tokens",
        steps=len(points),
        points=points,
        paces=[
            Pace(worker=rank, steps=len(points), seconds=dict(zip(names, parts, strict=True)))
            for rank, parts in enumerate(paces)
        ],
        local=False,
        gap=1,
    )


def measured(strategy, held_out, seed=0, **options) -> Measured:
    kernel = options.pop("kernel_bytes", None)
    return Measured(
        strategy=strategy, seed=seed, history=history(held_out, **options), kernel_bytes=kernel
    )


def test_the_target_is_reached_at_the_first_measurement_at_or_below_it():
    run = history([8.0, None, 6.0, 5.0])
    assert seconds_to(run, 7.0) == seconds_to(run, 6.0) == 6.0
    assert seconds_to(run, 5.9) == 8.0
    assert seconds_to(run, 8.5) == 2.0  # there at the first measurement
    assert seconds_to(run, 4.9) is None
    assert seconds_to(history([None]), 4.9) is None


def test_the_default_target_is_the_worst_last_loss_and_every_run_reaches_it():
    runs = [measured("a", [8.0, 5.0]), measured("b", [8.0, 6.0]), measured("b", [8.0, 4.0], 1)]
    target = worst_loss(runs)
    assert target == 6.0
    assert all(row.reached == row.runs for row in rows(runs, target))


def test_a_row_has_the_mean_and_the_sample_deviation_of_its_seeds():
    a, b = rows(
        [measured("a", [8.0, 5.0]), measured("b", [4.0]), measured("a", [8.0, 6.0], 1)], 5.5
    )
    assert (a.strategy, a.runs, a.reached) == ("a", 2, 1)
    assert a.loss.mean == 5.5 and a.loss.deviation == pytest.approx(math.sqrt(0.5))
    assert b.loss.values == (4.0,) and b.loss.deviation is None
    assert "in 1 of 2" in tabulate([a, b], target=5.5, counted="ledger").rows[0][2]


def test_a_loss_of_other_targets_than_tokens_is_not_called_nats():
    run = measured("a", [8.0, 5.0])
    texts = replace(run, history=replace(run.history, unit="texts"))
    row = rows([texts], None)
    titles = tabulate(row, target=None, counted="ledger").titles
    assert {"held-out loss (per text)", "bytes a text (ledger)", "texts a second"} <= set(titles)
    assert "texts a has a held-out loss of 5.0000 per text." in verdict(row, [texts])
    assert "texts" in sentence(texts.history, row[0])
    assert "token" not in sentence(texts.history, row[0])


def test_shares_are_of_the_time_of_all_workers():
    run = history([1.0], paces=((6.0, 2.0, 1.0, 1.0), (8.0, 2.0, 0.0, 0.0)))
    expected = {"computing": 0.7, "exchanging": 0.2, "waiting": 0.05, "data": 0.05}
    assert shares(run) == pytest.approx(expected)


def test_the_kernels_count_of_bytes_comes_before_the_ledgers():
    ledger, kernel = rows(
        [measured("a", [1.0, 1.0], sent=500), measured("b", [1.0], sent=5, kernel_bytes=1200)], None
    )
    assert ledger.bytes_per_token.values == (5.0,)
    assert kernel.bytes_per_token.values == (12.0,)


def test_numbers_have_their_deviation_and_say_what_is_missing():
    assert number(Spread((1.0, 2.0)), 2) == "1.50 ± 0.71"
    assert number(Spread((12345.678,)), 1) == "12,345.7"
    assert number(Spread((0.5,)), 1, scale=100) == "50.0"
    assert number(None, 2) == "-"


def said(*runs) -> str:
    return verdict(rows(runs, worst_loss(runs)), runs)


def test_the_verdict_names_the_lowest_the_first_and_the_least():
    text = said(
        measured("ddp", [8.0, 6.0, 5.0], sent=700), measured("diloco", [8.0, 7.0, 5.5], sent=7)
    )
    assert "After 300 tokens ddp has the lowest held-out loss, 5.0000 nats a token." in text
    assert "ddp is the first at the target, after 6.00 s." in text
    assert "diloco sends least, 0.1 bytes a token." in text


def test_the_verdict_calls_equal_losses_equal():
    text = said(measured("ddp", [8.0, 5.0]), measured("zero1", [8.0, 5.0]))
    assert "all strategies have the same held-out loss, 5.0000 nats a token." in text
    assert "least" not in text


def test_the_verdict_does_not_call_a_difference_within_the_spread_a_win():
    near = [measured("a", [5.0]), measured("a", [5.2], 1)]
    text = said(*near, measured("b", [5.1]), measured("b", [5.3], 1))
    assert "a has the lowest held-out loss" in text
    assert text.count("b lies within the seeds' spread of it") == 2  # the loss, the time
    text = said(*near, measured("b", [6.1]), measured("b", [6.3], 1))
    assert "a has the lowest held-out loss, 5.1000 ± 0.1414 nats a token." in text


def test_a_run_without_held_out_loss_has_a_table_all_the_same():
    text = said(measured("a", [None]), measured("b", [None]))
    assert "the held-out loss was measured in no run" in text
