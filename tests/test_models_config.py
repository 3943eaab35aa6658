"""The dial, what follows from it, and what is refused."""

import dataclasses
import subprocess
import sys

import pytest

from shoal.errors import ShoalError
from shoal.models.config import Dimensions, ModelConfig
from shoal.models.decoder import Decoder
from shoal.models.size import parameter_count


@pytest.mark.parametrize(
    ("depth", "millions"), [(2, 0.9), (3, 2.1), (4, 4.3), (6, 12.2), (10, 52.2)]
)
def test_the_dial_gives_the_documented_sizes(depth, millions):
    assert round(parameter_count(ModelConfig(depth=depth), 4096) / 1e6, 1) == millions


def test_explicit_dimensions_override_the_dial():
    config = ModelConfig(depth=2, width=96, heads=6, kv_heads=3, hidden=40)
    assert config.dimensions == Dimensions(depth=2, width=96, heads=6, kv_heads=3, hidden=40)
    assert config.dimensions.head_size == 16


@pytest.mark.parametrize("width", [2, 10, 32, 96, 100, 192, 254, 1000])
def test_every_even_width_has_heads_that_divide_it(width):
    sizes = ModelConfig(width=width).dimensions
    assert sizes.width % sizes.heads == 0
    assert sizes.head_size % 2 == 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"depth": 0}, "model.depth"),
        ({"width": -4}, "model.width"),
        ({"heads": 0}, "model.heads"),
        ({"hidden": 0}, "model.hidden"),
        ({"kv_heads": 0}, "model.kv_heads"),
        ({"width": 100, "heads": 3}, "model.width = 100 cannot be divided among model.heads = 3"),
        ({"width": 9, "heads": 3}, "must be even"),
        ({"width": 7}, "must be even"),
        ({"heads": 4, "kv_heads": 3}, "model.heads = 4 cannot be shared evenly"),
        ({"rope_theta": 0.0}, "model.rope_theta"),
        ({"norm_eps": float("nan")}, "model.norm_eps"),
        ({"path": "folder", "width": 64}, "model.width has no effect beside model.path"),
        ({"path": "folder", "tied": False}, "model.tied has no effect beside model.path"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_key(fields, words):
    with pytest.raises(ShoalError, match=words):
        ModelConfig(**fields)


def test_every_field_changes_the_model():
    base = ModelConfig(depth=2, width=32, heads=4)
    other = {
        "depth": 3,
        "width": 64,
        "heads": 2,
        "kv_heads": 2,
        "hidden": 48,
        "tied": False,
        "rope_theta": 100.0,
        "norm_eps": 0.1,
    }
    assert set(other) == {field.name for field in dataclasses.fields(ModelConfig)} - {
        "path",  # of other models
        *("kind", "dropout"),  # of other recipes, see their tests
    }
    import torch

    def outcome(config):
        torch.manual_seed(0)
        return Decoder(config, 50)(torch.arange(12)[None])

    for key, value in other.items():
        changed = outcome(dataclasses.replace(base, **{key: value}))
        assert not torch.equal(changed, outcome(base)), f"{key} has no effect"


def test_counting_parameters_equals_building_the_model():
    for config in (
        ModelConfig(depth=2, width=32, heads=4, kv_heads=2),
        ModelConfig(depth=1, width=32, tied=False),
    ):
        built = sum(parameter.numel() for parameter in Decoder(config, 100).parameters())
        assert parameter_count(config, 100) == built


def test_the_configuration_imports_no_torch():
    code = "import sys, shoal.models.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
