"""Predict the next token."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from shoal.errors import ShoalError
from shoal.models.build import build
from shoal.models.config import ModelConfig
from shoal.tasks.base import Batch, LossSum, Ratio, Samples, Split
from shoal.tasks.cross_entropy import IGNORE, cross_entropy_sum

if TYPE_CHECKING:
    from shoal.data.text import Text
    from shoal.data.tokenizer import Tokenizer


class LanguageModel:
    """Cross-entropy of the next token, in nats, summed over the targets of a batch.

    A batch holds `tokens`, `targets` (-100 where there is none) and `segments`, each int64
    [B, T].
    """

    unit = "tokens"

    def __init__(self, model: ModelConfig, data: "Text") -> None:
        """Learn `data` with the model that `model` describes."""
        self.model_config = model
        self.data = data

    @property
    def tokenizer(self) -> "Tokenizer":
        """What turns this task's tokens back into text."""
        return self.data.tokenizer

    @property
    def fingerprint(self) -> str:
        """Equal where the samples are equal."""
        return self.data.fingerprint

    def build_model(self) -> nn.Module:
        """The model, on the CPU in fp32.

        Raises:
            ShoalError: the folder holds no model, or one with fewer tokens than the data's or
                too few positions for its samples.
        """
        vocab_size: int = self.tokenizer.vocab_size
        model = build(self.model_config, vocab_size)
        if model.vocab_size < vocab_size:
            raise ShoalError(
                f"the model in {self.model_config.path} knows {model.vocab_size} tokens, but the "
                f"data's tokenizer has {vocab_size}; use the model's own tokenizer"
            )
        length: int = self.data.train.sequence_length
        if model.context is not None and length > model.context:
            raise ShoalError(
                f"data.sequence_length is {length}, but the model in {self.model_config.path} "
                f"holds at most {model.context} tokens"
            )
        return model

    def samples(self, split: Split) -> Samples:
        """Windows of packed documents."""
        return self.data.train if split == "train" else self.data.held_out

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        """Sum over the targets of -log p(target), and how many there are."""
        targets_BT = batch["targets"]
        count = int((targets_BT != IGNORE).sum())
        logits_BTV = model(batch["tokens"], batch["segments"])
        return LossSum(_sum_of_losses(logits_BTV, targets_BT), count)

    @torch.no_grad()
    def metrics(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        """`loss`: nats per target. `accuracy`: the share of targets that rank first."""
        targets_BT = batch["targets"]
        count = int((targets_BT != IGNORE).sum())
        logits_BTV = model(batch["tokens"], batch["segments"])
        hits = int((logits_BTV.argmax(dim=-1) == targets_BT).sum())
        total = float(_sum_of_losses(logits_BTV, targets_BT))
        return {"loss": Ratio(total, count), "accuracy": Ratio(hits, count)}


def _sum_of_losses(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    return cross_entropy_sum(logits_BTV.flatten(0, 1), targets_BT.flatten())
