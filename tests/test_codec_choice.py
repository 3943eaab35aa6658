"""Which codec a tensor gets."""

import pytest

from shoal.codec.base import Spec
from shoal.codec.bf16 import BF16
from shoal.codec.block import Int8
from shoal.codec.choice import ByRole, BySize, Choice, codec_for
from shoal.codec.identity import Identity
from shoal.codec.topk import TopK

ROLES = ByRole(vectors=Identity(), embeddings=BF16(), matrices=TopK())


def test_a_codec_alone_is_everyones():
    assert codec_for(TopK(top=3), Spec("a", (5,))) == TopK(top=3)


@pytest.mark.parametrize(
    ("shape", "expected"), [((99,), Identity()), ((100,), TopK()), ((9, 11), Identity()),
                            ((10, 10), TopK())],
)  # fmt: skip
def test_size_is_counted_in_elements_and_the_limit_is_large(shape, expected):
    choice = BySize(limit=100, small=Identity(), large=TopK())
    assert choice.pick(Spec("a", shape)) == codec_for(choice, Spec("a", shape)) == expected


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blocks.0.attention.qkv.weight", (576, 192), TopK()),
        ("blocks.0.attention_norm.weight", (192,), Identity()),
        ("embed.weight", (1000, 192), BF16()),
        ("model.embed_tokens.weight", (1000, 192), BF16()),
        ("transformer.wte.weight", (1000, 192), BF16()),
        ("lm_head.weight", (1000, 192), BF16()),
        ("embed.bias", (192,), Identity()),
        ("conv.weight", (8, 8, 3, 3), TopK()),
    ],
)
def test_roles_are_told_by_shape_and_name(name, shape, expected):
    assert ROLES.pick(Spec(name, shape)) == expected


def test_choices_nest():
    by_size = BySize(limit=1000, small=Int8(), large=TopK())
    choice = ByRole(vectors=Identity(), embeddings=BF16(), matrices=by_size)
    assert codec_for(choice, Spec("a.weight", (10, 10))) == Int8()
    assert codec_for(choice, Spec("a.weight", (100, 10))) == TopK()


def test_a_choice_is_exact_if_all_that_it_may_pick_is():
    exact = BySize(limit=9, small=Identity(), large=Identity())
    assert isinstance(exact, Choice) and exact.exact
    assert ByRole(vectors=exact, embeddings=exact, matrices=exact).exact
    assert not BySize(limit=9, small=Identity(), large=BF16()).exact
    for role in ("vectors", "embeddings", "matrices"):
        parts = {"vectors": exact, "embeddings": exact, "matrices": exact, role: BF16()}
        assert not ByRole(**parts).exact
