"""Continuing a text: the cache, the choice, and characters that span tokens."""

import time
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ShoalError
from shoal.models.config import ModelConfig
from shoal.models.decoder import Decoder
from shoal.models.generate import choose_tokens, generate, pieces

torch.set_num_threads(1)  # a second thread costs more than it brings at these sizes


class Bytes:
    """A tokenizer whose tokens are bytes; 256 ends a text."""

    end_of_text = 256
    vocab_size = 257

    def encode(self, text):
        return list(text.encode())

    def decode(self, tokens):
        return bytes(token for token in tokens if token < 256).decode(errors="replace")


class Chunks:
    """A tokenizer whose tokens are chunks of bytes, wherever they were cut."""

    end_of_text = -1

    def __init__(self, chunks):
        self.chunks = chunks

    def encode(self, text):
        raise NotImplementedError

    def decode(self, tokens):
        return b"".join(self.chunks[token] for token in tokens).decode(errors="replace")


class Words:
    """A tokenizer in the manner of SentencePiece: the first token loses its space."""

    end_of_text = -1
    words = (" to", " be", " or", " not")

    def encode(self, text):
        raise NotImplementedError

    def decode(self, tokens):
        return "".join(self.words[token] for token in tokens).removeprefix(" ")


def decoder(**fields):
    torch.manual_seed(0)
    sizes = {"depth": 2, "width": 32, "heads": 4, "tied": False} | fields
    model = Decoder(ModelConfig(**sizes), 257)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(10)  # so that the next token depends on all that was read
    return model


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_cached_generation_equals_reading_everything_again(kv_heads):
    model, prompt = decoder(kv_heads=kv_heads), list(b"once upon")
    cached = list(choose_tokens(model, prompt, 30, 0.0, 0, 0))
    everything = list(prompt)
    for _ in range(30):
        everything.append(int(model(torch.tensor([everything]))[0, -1].argmax()))
    assert cached == everything[len(prompt) :]
    assert len(set(cached)) > 3


def test_the_seed_decides_the_text():
    model = decoder()

    def text(seed, **options):
        return "".join(generate(model, Bytes(), "a", tokens=40, seed=seed, **options))

    assert text(0) == text(0)
    assert text(0) != text(1)
    assert text(0, temperature=0) == text(1, temperature=0)
    assert text(0, top_k=1) == text(1, temperature=0)
    assert text(0, temperature=1e-30) == text(0, temperature=0)
    assert text(0, top_k=0) == text(0, top_k=257)
    assert text(0, temperature=3.0, top_k=0) != text(0, temperature=0.8, top_k=0)


def test_top_k_never_chooses_a_less_probable_token():
    model = decoder()
    prompt = list(b"xyz")
    allowed = model(torch.tensor([prompt]))[0, -1].topk(3).indices.tolist()
    chosen = {next(choose_tokens(model, prompt, 1, 5.0, 3, seed)) for seed in range(40)}
    assert chosen == set(allowed)


def test_an_empty_prompt_begins_after_an_end_of_text():
    model = decoder()
    first = int(model(torch.tensor([[256]]))[0, -1].argmax())
    assert next(choose_tokens(model, [256], 1, 0.0, 0, 0)) == first
    assert isinstance("".join(generate(model, Bytes(), "", tokens=5)), str)


def test_an_end_of_text_token_stops():
    class Ending(Decoder):
        def advance(self, tokens_BT, past=None):
            read = (past or 0) + tokens_BT.shape[1]
            logits = torch.zeros(1, 257)
            logits[0, 256 if read == 5 else 65] = 50.0
            return logits, read

    model = Ending(ModelConfig(depth=1, width=8), 257)
    assert "".join(generate(model, Bytes(), "ab", tokens=100)) == "AAA"


def test_the_training_mode_is_given_back_and_evaluation_is_used():
    model = decoder().train()
    stream = choose_tokens(model, [1], 5, 0.0, 0, 0)
    next(stream)
    assert not model.training
    stream.close()
    assert model.training


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokens": 0}, "tokens must be at least 1"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(options, words):
    with pytest.raises(ShoalError, match=words):
        generate(decoder(), Bytes(), "a", **options)


def test_more_tokens_than_the_model_holds_are_refused():
    model = decoder()
    model.context = 16
    with pytest.raises(ShoalError, match="a prompt of 3 tokens and 14 more"):
        generate(model, Bytes(), "abc", tokens=14)
    assert len(list(choose_tokens(model, [1, 2, 3], 13, 0.0, 0, 0))) == 13


def test_a_module_that_is_no_language_model_is_refused():
    with pytest.raises(ShoalError, match="a Linear cannot continue a text"):
        generate(torch.nn.Linear(2, 2), Bytes(), "a")


@given(st.text(max_size=30), st.data())
def test_pieces_join_to_the_text_however_its_bytes_are_cut(text, data):
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)))) | {0, len(raw)})
    chunks = [raw[a:b] for a, b in pairwise(cuts)]
    streamed = list(pieces(Chunks(chunks), iter(range(len(chunks)))))
    assert "".join(streamed) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in streamed)


@given(st.lists(st.binary(min_size=1, max_size=4), max_size=12))
def test_pieces_of_bytes_that_are_no_text_join_to_their_decoding(chunks):
    streamed = pieces(Chunks(chunks), iter(range(len(chunks))))
    assert "".join(streamed) == b"".join(chunks).decode(errors="replace")


def test_spaces_between_words_survive_a_tokenizer_that_drops_the_first():
    assert "".join(pieces(Words(), iter([0, 1, 2, 3, 0, 1]))) == "to be or not to be"


def test_a_piece_comes_as_soon_as_its_character_is_whole():
    chunks = [b"a", b"\xe2\x82", b"\xac", b"b"]  # a, two thirds of a euro sign, the rest, b
    seen = []

    def numbers():
        for number in range(4):
            seen.append("".join(streamed))
            yield number

    streamed = []
    for piece in pieces(Chunks(chunks), numbers()):
        streamed.append(piece)
    assert seen == ["", "a", "a", "a€"]


def test_a_long_text_streams_in_linear_time():
    def seconds(count):
        start = time.process_time()
        for _ in pieces(Bytes(), iter([97] * count)):
            pass
        return time.process_time() - start

    assert seconds(20_000) < 30 * max(seconds(2_000), 1e-3)


def test_our_own_tokenizer_streams_what_it_decodes():
    from shoal.data.tokenizer import Tokenizer, _trained

    inner = _trained(["naïve café, 東京 and 😀 or so " * 20], 300)
    tokenizer = Tokenizer(inner, inner.token_to_id("<|endoftext|>"), {})
    text = " 京都 for 🦈 naïve €"
    numbers = tokenizer.encode(text)
    assert len(numbers) > len(text) / 2
    assert "".join(pieces(tokenizer, iter(numbers))) == text
