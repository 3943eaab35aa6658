"""Predict the next token with a model that knows how to already."""

import math
import os.path
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shoal.data.files import decoded
from shoal.data.text import Text
from shoal.errors import ShoalError
from shoal.models.config import ModelConfig
from shoal.models.generate import generate, room
from shoal.tasks.base import Scores
from shoal.tasks.language_model import LanguageModel

OPENING = 24
"""Tokens of a held-out text that the model is asked to go on from."""

CONTINUATION = 60
"""Tokens that it adds, the likeliest each time."""


class FineTuning(LanguageModel):
    """A pretrained language model on new text, judged by its perplexity before and after."""

    def __init__(self, model: ModelConfig, data: Text, *, samples: int, micro_batch: int) -> None:
        """Learn `data` with the model at `model.path`; judge on `samples` held-out windows."""
        super().__init__(model, data)
        self._samples, self._micro_batch = samples, micro_batch

    def scores(self, model: nn.Module) -> Scores:
        """`perplexity`: exp of the mean loss in nats a token, over evenly spread windows."""
        held_out = self.data.held_out
        count = min(self._samples, len(held_out))
        chosen = [held_out[i * len(held_out) // count] for i in range(count)]
        device = next(model.parameters()).device
        total = targets = 0.0
        for start in range(0, count, self._micro_batch):
            batch = torch.utils.data.default_collate(chosen[start : start + self._micro_batch])
            found = self.metrics(model, {name: value.to(device) for name, value in batch.items()})
            total += found["loss"].numerator
            targets += found["loss"].denominator
        return {"perplexity": math.exp(min(total / targets, 700.0))}

    def baselines(self) -> Mapping[str, Scores]:
        """The model as it came."""
        return {"before training": self.scores(self.build_model().eval())}

    def predict(self, model: nn.Module, source: str | None) -> Iterator[Mapping[str, Any]]:
        """How a text goes on, or the text in a file; without one, how held-out texts do."""
        for prompt in [_text(source)] if source is not None else self._openings():
            tokens = room(model, self.tokenizer, prompt, CONTINUATION)
            more = generate(model, self.tokenizer, prompt, tokens=tokens, temperature=0.0)
            yield {"text": prompt, "continuation": "".join(more)}

    def _openings(self) -> Iterator[str]:
        held_out = self.data.held_out
        for number in range(0, len(held_out), max(1, len(held_out) // 3)):
            yield self.tokenizer.decode(held_out[number]["tokens"][:OPENING].tolist())


def _text(source: str) -> str:
    if os.path.isdir(source):
        raise ShoalError(f"{source} is a folder: give a text, or a file with one")
    # (Path.is_file would fail for a text that is too long for a name.)
    return decoded(Path(source).read_bytes(), source) if os.path.isfile(source) else source
