"""What a task is: the seam between what is learned and how workers agree on it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Split = Literal["train", "held_out"]
Sample = Mapping[str, Any]
"""Named tensors of one sample. (`Any`, so that a `TypedDict` of tensors is one too.)"""
Batch = Mapping[str, Any]
"""The same names; the tensors have one more axis in front, which counts the samples."""


class LossSum(NamedTuple):
    """The loss of some samples, before any division.

    Sums and counts of any split of a batch add up to those of the whole, means do not:
    that is why a task never divides.
    """

    total: Tensor
    """The sum over the targets, 0-d, with its gradient."""
    count: int  # type: ignore[assignment]  # as a field it hides tuple.count, on purpose
    """How many targets were summed."""


class Ratio(NamedTuple):
    """A metric before its division, so that workers can add theirs up."""

    numerator: float
    denominator: float


class Samples(Protocol):
    """Samples by number."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int, /) -> Sample:
        """Sample `index`, from 0."""


class Task(Protocol):
    """What is learned: samples, a model, and the loss that joins them.

    A task may also have `fingerprint` (equal where the samples are), `collate` (makes a batch of
    a list of samples; torch's default_collate otherwise), `unit` (what its targets are, in the
    plural) and what `Applied` asks for.
    """

    def build_model(self) -> nn.Module:
        """A fresh model; its initial weights follow from torch's random state."""

    def samples(self, split: Split) -> Samples:
        """The samples to train on, or those held out."""

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        """The loss of a batch as a sum and a count."""

    def metrics(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        """Metrics of a batch as numerators and denominators, without gradients."""


Scores = Mapping[str, float]
"""Figures of merit by name, over all held-out samples."""


@runtime_checkable
class Applied(Protocol):
    """What a task offers, beside learning, to one who uses its model."""

    def scores(self, model: nn.Module) -> Scores:
        """The task's figures over all held-out samples, the one to judge by first.

        They may need every prediction at once (F1, BLEU, AUROC), which a `Ratio` cannot give.
        """

    def baselines(self) -> Mapping[str, Scores]:
        """The same figures of simple methods, by their names: what a model has to beat."""

    def predict(self, model: nn.Module, source: str | None) -> Iterator[Mapping[str, Any]]:
        """Predictions for `source`, one row each, as values that JSON can hold.

        Args:
            model: in evaluation mode.
            source: a path or a text; None: a few held-out samples, with their truth beside.

        Raises:
            ShoalError: naming the file, and the row where there is one, that cannot be read.
        """


def collate_of(task: Task) -> Callable[[Sequence[Sample]], Any]:
    """How a task makes a batch of samples."""
    collate: Any = getattr(task, "collate", torch.utils.data.default_collate)
    found: Callable[[Sequence[Sample]], Any] = collate
    return found
