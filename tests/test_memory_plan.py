"""The memory that a run is expected to need, against what autograd and the kernel say."""

import pytest
import torch

from shoal.models.config import ModelConfig
from shoal.plan import memory
from shoal.tasks.cross_entropy import cross_entropy_sum
from shoal.train.optimizer import OptimizerConfig


def plan(**changes) -> dict[str, int]:
    options = {
        "elements": 1000,
        "leaves": 8,
        "workers": 2,
        "update": "everyone",
        "optimizer": OptimizerConfig(),
        "shared_memory": True,
        "activations": 300,
        "program": 7,
    }
    return memory.expected_memory(**(options | changes))


def test_owners_keep_their_share_of_the_optimizers_state():
    assert plan()["optimizer"] == 2 * 4000
    assert plan(update="owner")["optimizer"] == 4000
    assert plan(optimizer=OptimizerConfig(name="sgd"))["optimizer"] == 0
    assert plan(optimizer=OptimizerConfig(name="sgd", momentum=0.9))["optimizer"] == 4000


def test_gradient_slots_follow_from_the_tree():
    assert plan(workers=1)["gradients"] == 3 * 4000
    assert plan()["gradients"] == 2 * 4000
    assert plan(workers=8)["gradients"] == 4000


def test_peers_buffers_count_where_they_are_mapped():
    # The peer's weights once, and half of the one partial sum that it holds.
    assert plan()["peers' buffers"] == 4000 + 2000
    assert "peers' buffers" not in plan(workers=1)
    assert "peers' buffers" not in plan(shared_memory=False)


def saved_bytes(config: ModelConfig, vocab: int, rows: int, length: int) -> int:
    """What autograd really keeps for the backward pass of one leaf, weights aside."""
    from shoal.models.decoder import Decoder

    built = Decoder(config, vocab)
    weights = {p.untyped_storage().data_ptr() for p in built.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    tokens = torch.zeros(rows, length, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = built(tokens)
        cross_entropy_sum(logits.flatten(0, 1), tokens.flatten())
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("shape", [{"depth": 2, "width": 128}, {"depth": 3, "width": 64}])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_the_formula_for_activations_is_what_autograd_keeps(shape, kv_heads):
    config = ModelConfig(**shape, heads=2, kv_heads=kv_heads)
    vocab, rows, length = 600, 4, 128
    predicted = memory.decoder_activations(
        config.dimensions,
        vocab_size=vocab,
        micro_batch=rows,
        sequence_length=length,
        precision="fp32",
        parameters=0,
        masked=False,
    )
    # Before its backward pass the loss keeps the log-probabilities, and no gradient yet.
    logits = rows * length * vocab * 4
    passing = max(vocab, 2 * config.dimensions.hidden) * config.dimensions.width * 4
    kept = saved_bytes(config, vocab, rows, length)
    assert kept == pytest.approx(predicted - logits - passing, rel=0.03)


def test_resident_memory_is_read_from_the_kernel():
    before = memory.resident_bytes()
    block = torch.ones(8 << 20)
    assert memory.resident_bytes() - before > 0.9 * block.nbytes
    assert memory.resident_bytes(peak=True) >= memory.resident_bytes()
