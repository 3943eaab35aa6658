"""Continue a text, one token at a time."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from shoal.errors import ShoalError
from shoal.models.base import CausalModel


class TextCodec(Protocol):
    """What generation asks of a tokenizer."""

    end_of_text: int

    def encode(self, text: str, /) -> list[int]:
        """Token numbers of a text."""

    def decode(self, tokens: Sequence[int], /) -> str:
        """The text of token numbers; bytes that are not UTF-8 become U+FFFD."""


def generate(
    model: nn.Module,
    tokenizer: TextCodec,
    prompt: str,
    *,
    tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
) -> Iterator[str]:
    """Yield the text that follows `prompt`, in pieces, as soon as their characters are whole.

    Args:
        model: on any device, in training mode or not; it is in evaluation mode meanwhile.
        tokenizer: the one that the model was trained with.
        prompt: may be empty: the text then begins after an end-of-text token.
        tokens: the most tokens to add; an end-of-text token stops sooner.
        temperature: divides the logits; 0 always takes the most probable token.
        top_k: how many of the most probable tokens to choose from; 0 for all.
        seed: of the choices. The same seed gives the same text.

    Raises:
        ShoalError: an argument out of its range, more tokens than the model can hold, or not
            a language model.
    """
    if not isinstance(model, CausalModel):
        raise ShoalError(f"a {type(model).__name__} cannot continue a text")
    if tokens < 1:
        raise ShoalError(f"tokens must be at least 1, not {tokens}")
    if not temperature >= 0:
        raise ShoalError(f"temperature must be 0 or more, not {temperature}")
    if top_k < 0:
        raise ShoalError(f"top_k must be 0 (all tokens) or more, not {top_k}")
    read = tokenizer.encode(prompt) or [tokenizer.end_of_text]
    if model.context is not None and len(read) + tokens > model.context:
        raise ShoalError(
            f"a prompt of {len(read)} tokens and {tokens} more do not fit into the model's "
            f"{model.context}; shorten one of the two"
        )
    chosen = choose_tokens(model, read, tokens, temperature, top_k, seed)
    return pieces(tokenizer, _until(chosen, tokenizer.end_of_text))


def room(model: nn.Module, tokenizer: TextCodec, prompt: str, most: int) -> int:
    """How many tokens to ask for behind `prompt`: `most`, or as many as the model can hold."""
    context = getattr(model, "context", None)
    return most if context is None else max(1, min(most, context - len(tokenizer.encode(prompt))))


def choose_tokens(
    model: CausalModel,
    prompt: Sequence[int],
    tokens: int,
    temperature: float,
    top_k: int,
    seed: int,
) -> Iterator[int]:
    """The `tokens` token numbers that follow `prompt`; the arguments are those of `generate`."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    training = model.training
    model.eval()
    try:
        unread, past = list(prompt), None
        for _ in range(tokens):
            # Not around the loop: the caller's code runs between two tokens.
            with torch.inference_mode():
                logits_1V, past = model.advance(torch.tensor([unread], device=device), past)
                token = _choose(logits_1V[0].float().cpu(), temperature, top_k, generator)
            unread = [token]
            yield token
    finally:
        model.train(training)


def pieces(tokenizer: TextCodec, numbers: Iterator[int]) -> Iterator[str]:
    """Decode a stream of token numbers into pieces of text that join to the whole.

    A character can be spread over several tokens. Until its last byte is there it decodes to
    U+FFFD, which is therefore held back at the end of a piece.
    """
    window: list[int] = []
    sent = 0  # Characters of the window's text that were yielded.
    for number in numbers:
        window.append(number)
        text = tokenizer.decode(window)
        whole = len(text) - text.endswith("\ufffd")
        if whole > sent:
            yield text[sent:whole]
            sent = whole
        if whole == len(text) and len(window) > 1:
            # Go on from the last token alone, which keeps the cost of a token constant. It
            # stays in the window because some tokenizers drop a space in front of the first.
            window = [number]
            sent = len(tokenizer.decode(window))
    rest = tokenizer.decode(window)[sent:]
    if rest:
        yield rest


def _choose(logits_V: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    values, numbers = logits_V.topk(min(top_k or len(logits_V), len(logits_V)))
    # Shifted first: with a tiny temperature the quotients would overflow.
    probabilities = torch.softmax((values - values[0]) / temperature, dim=-1)
    return int(numbers[torch.multinomial(probabilities, 1, generator=generator)])


def _until(numbers: Iterator[int], last: int) -> Iterator[int]:
    for number in numbers:
        if number == last:
            return
        yield number
