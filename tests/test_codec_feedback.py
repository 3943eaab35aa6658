"""Error feedback over every codec: nothing is lost, it is only late."""

import pytest
import torch
from coding import LOSSY, chunk_of, decoded, encoded
from hypothesis import given
from hypothesis import strategies as st

from shoal.codec.catalogue import codec_named

SHAPE = (64, 64)


def sent_over(codec, values, share):
    """What arrives at each round with feedback, and the residual after it."""
    residual, state = torch.zeros(SHAPE), None
    for value in values:
        owed = value + share * residual
        payload, state = encoded(codec, owed, state)
        sent = decoded(codec, payload, SHAPE)
        before, residual = residual, owed - sent
        yield value, before, sent, residual


@pytest.mark.parametrize("name", LOSSY)
@given(seed=st.integers(0, 5), share=st.sampled_from([0.5, 0.95, 1.0]))
def test_sent_and_residual_are_value_and_old_residual(name, seed, share):
    values = [chunk_of("normal", SHAPE, 10 * seed + n) for n in range(4)]
    for value, before, sent, after in sent_over(codec_named(name), values, share):
        left = sent.double() + after.double()
        right = value.double() + share * before.double()
        # Three roundings of fp32, of numbers as large as these.
        assert ((left - right).abs() <= 2.0**-22 * (right.abs() + sent.abs() + 1)).all()


def mean_error(name, rounds, share):
    """Relative distance of the mean of what was sent from the one value that was contributed."""
    value = chunk_of("normal", SHAPE)
    total = torch.zeros(SHAPE, dtype=torch.float64)
    for _, _, sent, _ in sent_over(codec_named(name), [value] * rounds, share):
        total += sent
    return float((total / rounds - value).norm() / value.norm())


@pytest.mark.parametrize("name", LOSSY)
def test_the_mean_of_what_was_sent_converges_with_feedback(name):
    # A bounded residual makes it 1/4. One magnitude for all values is slower: its residual
    # still grows, with something like the root of the rounds.
    shrinks = 0.6 if name == "sign" else 0.3
    assert mean_error(name, 400, 1.0) < shrinks * mean_error(name, 100, 1.0) + 1e-6


@pytest.mark.parametrize("name", ["bf16", "int8", "int4", "e3m0", "topk", "topk2", "sign"])
def test_without_feedback_it_does_not(name):
    once, often = (mean_error(name, rounds, 0.0) for rounds in (1, 50))
    assert often == pytest.approx(once, rel=1e-5)
