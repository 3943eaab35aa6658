"""The built-in decoder: what attention sees, how it begins, and that it repeats itself."""

import math

import pytest
import torch

from shoal.models.config import ModelConfig
from shoal.models.decoder import Decoder, document_mask, rotate

torch.set_num_threads(1)  # a second thread costs more than it brings at these sizes

VOCAB = 61


def decoder(seed=0, **fields):
    torch.manual_seed(seed)
    return Decoder(ModelConfig(**({"depth": 2, "width": 32, "heads": 4} | fields)), VOCAB)


def random_tokens(rows, length, seed=1):
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_a_position_does_not_see_what_follows(kv_heads):
    model, tokens = decoder(kv_heads=kv_heads), random_tokens(2, 16)
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % VOCAB
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_packed_documents_give_the_logits_of_separate_ones(kv_heads):
    model, tokens = decoder(kv_heads=kv_heads), random_tokens(2, 16)
    lengths = [[5, 11], [1, 15]]
    segments = torch.tensor([[0] * 5 + [1] * 11, [0] + [1] * 15])
    packed = model(tokens, segments)
    for row in range(2):
        alone = [model(part[None])[0] for part in tokens[row].split(lengths[row])]
        torch.testing.assert_close(packed[row], torch.cat(alone), rtol=1e-5, atol=1e-6)


def test_one_document_a_row_takes_the_fast_path_with_the_same_result():
    model, tokens = decoder(), random_tokens(2, 16)
    assert document_mask(torch.zeros(2, 16, dtype=torch.int64)) is None
    assert torch.equal(model(tokens, torch.full((2, 16), 3)), model(tokens))
    mask = torch.ones(16, 16, dtype=torch.bool).tril()[None, None]
    slow = model.blocks[0].attention(torch.ones(1, 16, 32), model._rotation(0, tokens), mask, None)
    fast = model.blocks[0].attention(torch.ones(1, 16, 32), model._rotation(0, tokens), None, None)
    torch.testing.assert_close(slow, fast, rtol=1e-5, atol=1e-6)


def test_rotation_keeps_lengths_and_depends_on_distance_alone():
    model = decoder()
    x = torch.randn(1, 1, 4, 8, generator=torch.Generator().manual_seed(0)).expand(1, 20, 4, 8)
    turned = rotate(x, model._rotation(0, torch.zeros(1, 20)))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    first, second = turned[0, :, 0], turned[0, :, 1]
    scores = first @ second.T
    torch.testing.assert_close(scores[3, 7], scores[12, 16])
    assert not torch.isclose(scores[3, 7], scores[7, 3])


def test_a_fresh_model_is_undecided():
    model = decoder(depth=4, width=64)
    tokens = random_tokens(4, 32)
    logits = model(tokens)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.roll(-1, 1).flatten())
    assert float(loss.detach()) == pytest.approx(math.log(VOCAB), abs=0.1)


def test_weights_that_write_to_the_stream_begin_smaller_with_depth():
    block = decoder(depth=8, width=128).blocks[0]
    assert float(block.attention.qkv.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    for layer in (block.attention.out, block.feed_forward.down):
        assert float(layer.weight.detach().std()) == pytest.approx(0.02 / 4, rel=0.05)


def test_the_seed_decides_the_weights():
    one, same, other = (decoder(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["embed.weight"], other["embed.weight"])


def test_there_are_no_buffers_and_every_parameter_learns():
    model = decoder(kv_heads=2, tied=False)
    assert not list(model.buffers())
    model(random_tokens(2, 16)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_tied_head_is_the_embedding():
    names = [name for name, _ in decoder(tied=True).named_parameters()]
    assert "embed.weight" in names
    assert not any(name.startswith("head") for name in names)


def test_gradients_repeat_to_the_last_bit():
    def gradients():
        model, tokens = decoder(kv_heads=2), random_tokens(3, 24)
        segments = (torch.arange(24) // 7).expand(3, 24)
        model(tokens, segments).square().sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    torch.randn(1000, 100) @ torch.randn(100, 100)
    assert all(torch.equal(*pair) for pair in zip(gradients(), gradients(), strict=True))


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_reading_in_pieces_equals_reading_at_once(kv_heads):
    model, tokens = decoder(kv_heads=kv_heads), random_tokens(2, 16)
    whole = model(tokens)
    past, start = None, 0
    for length in (5, 1, 1, 6, 3):
        start += length
        logits, past = model.advance(tokens[:, start - length : start], past)
        torch.testing.assert_close(logits, whole[:, start - 1], rtol=1e-5, atol=1e-6)
    assert past[0].length == 16


def test_autocast_computes_in_bf16_close_to_fp32():
    model, tokens = decoder(), random_tokens(1, 8)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(tokens, torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]]))
    assert low.dtype == torch.bfloat16
    high = model(tokens, torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]]))
    torch.testing.assert_close(low.float(), high, rtol=0.05, atol=0.02)
