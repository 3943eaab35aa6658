"""Tell the class of a text."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from shoal.data.cache import Say, digest, silent
from shoal.data.files import decoded
from shoal.data.labelled import Labelled, text_of
from shoal.data.rows import SUFFIXES, place, read_rows, table_file
from shoal.data.words import EncodedRows, Encoder, encoded
from shoal.errors import ShoalError
from shoal.tasks.base import Batch, LossSum, Ratio, Sample, Samples, Scores, Split
from shoal.tasks.cross_entropy import cross_entropy_sum
from shoal.tasks.padding import pad
from shoal.tasks.text_baselines import baselines, class_scores

AT_ONCE = 64
"""Texts that are classified together outside training."""

SHOWN = 8
"""Held-out texts that are predicted where no text is given."""


class TextClassification:
    """Cross-entropy of a text's class, in nats, summed over the texts of a batch.

    A batch holds `tokens` int64 [B, T], padded at the end, and `length` and `label` int64 [B].
    """

    unit = "texts"

    def __init__(
        self,
        data: Labelled,
        encoder: Encoder,
        build: Callable[[], nn.Module],
        *,
        text_field: str = "text",
        say: Say = silent,
    ) -> None:
        """Learn `data` as `encoder` reads it with the model that `build` makes.

        `text_field` is the column of the text, in files that are predicted.
        """
        self.data, self.encoder = data, encoder
        self._build, self._text_field = build, text_field
        columns = encoded(data, encoder, say)
        self._train = EncodedRows(columns, data.labels, data.train)
        self._held_out = EncodedRows(columns, data.labels, data.held_out)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; logits are in this order."""
        return self.data.classes

    @property
    def fingerprint(self) -> str:
        """Equal where the samples are equal."""
        return digest("text classification", self.data.fingerprint, self.encoder.fingerprint)

    def build_model(self) -> nn.Module:
        """The model, on the CPU in fp32."""
        return self._build()

    def samples(self, split: Split) -> Samples:
        """Encoded texts with their labels."""
        return self._train if split == "train" else self._held_out

    def collate(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """A batch; texts are padded to the longest. What the padding holds is never read."""
        return pad(samples, {"tokens": 0})

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        """Sum over the texts of -log p(label), and how many there are."""
        logits_BK = model(batch["tokens"], batch["length"])
        return LossSum(cross_entropy_sum(logits_BK, batch["label"]), len(batch["label"]))

    @torch.no_grad()
    def metrics(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        """`loss`: nats per text. `accuracy`: the share of labels that rank first."""
        labels_B = batch["label"]
        logits_BK = model(batch["tokens"], batch["length"])
        hits = int((logits_BK.argmax(dim=-1) == labels_B).sum())
        total = float(cross_entropy_sum(logits_BK, labels_B))
        return {"loss": Ratio(total, len(labels_B)), "accuracy": Ratio(hits, len(labels_B))}

    def scores(self, model: nn.Module) -> Scores:
        """`accuracy`, and F1 as `class_scores` defines it, over all held-out texts."""
        found = self.held_out_probabilities(model).argmax(axis=1)
        return class_scores(self.data.labels[self.data.held_out], found, len(self.classes))

    def held_out_probabilities(self, model: nn.Module) -> npt.NDArray[np.float32]:
        """float32 [held-out texts, K]: the probability of each class."""
        rows = self._held_out
        batches = [
            self.collate([rows[i] for i in range(first, min(first + AT_ONCE, len(rows)))])
            for first in range(0, len(rows), AT_ONCE)
        ]
        return np.concatenate([_probabilities(model, batch) for batch in batches])

    def baselines(self) -> Mapping[str, Scores]:
        """The most frequent class, and logistic regression on the counts of words."""
        return baselines(self.data)

    def predict(self, model: nn.Module, source: str | None) -> Iterator[Mapping[str, Any]]:
        """The class of a text, or of each row of a .csv, .jsonl or .txt file, and how likely it is.

        A text that is a path of something is taken for the path.
        """
        if source is None:
            yield from self._shown(model)
        elif not os.path.exists(source):
            yield from self._classified(model, [({}, source)])
        else:
            rows = ((({"row": row}), text) for row, text in _texts(Path(source), self._text_field))
            yield from self._classified(model, rows)

    def _shown(self, model: nn.Module) -> Iterator[Mapping[str, Any]]:
        chosen = self.data.held_out
        count = min(SHOWN, len(chosen))
        numbers = [int(chosen[i * len(chosen) // count]) for i in range(count)]
        texts = [self.data.text(number) for number in numbers]
        found = self._classified(model, [({}, text) for text in texts])
        for number, text, row in zip(numbers, texts, found, strict=True):
            yield {**row, "truth": self.classes[self.data.labels[number]], "text": text}

    def _classified(self, model: nn.Module, rows: Any) -> Iterator[dict[str, Any]]:
        """What is known of each text, with its class and the class's probability."""
        waiting: list[tuple[dict[str, Any], str]] = []
        for row in rows:
            waiting.append(row)
            if len(waiting) == AT_ONCE:
                yield from self._classify(model, waiting)
                waiting = []
        if waiting:
            yield from self._classify(model, waiting)

    def _classify(
        self, model: nn.Module, rows: list[tuple[dict[str, Any], str]]
    ) -> Iterator[dict[str, Any]]:
        tokens = [torch.tensor(found) for found in self.encoder.encode([text for _, text in rows])]
        samples = [{"tokens": found, "length": torch.tensor(len(found))} for found in tokens]
        for (known, _), chances in zip(
            rows, _probabilities(model, self.collate(samples)), strict=True
        ):
            best = int(chances.argmax())
            yield {**known, "label": self.classes[best], "probability": float(chances[best])}


@torch.no_grad()
def _probabilities(model: nn.Module, batch: Mapping[str, Tensor]) -> npt.NDArray[np.float32]:
    device = next(model.parameters()).device
    logits_BK = model(batch["tokens"].to(device), batch["length"].to(device))
    found: npt.NDArray[np.float32] = logits_BK.float().softmax(dim=-1).cpu().numpy()
    return found


def _texts(path: Path, field: str) -> Iterator[tuple[int, str]]:
    """The texts of a table, or the lines of a .txt file, with their rows; blank lines have none."""
    if path.suffix.lower() != ".txt":
        if path.is_file() and path.suffix.lower() not in SUFFIXES:
            raise ShoalError(
                f"{path} is none of {', '.join(SUFFIXES)}, .txt: its name tells the form"
            )
        file = table_file(path)
        for number, row in read_rows(file, (field,)):
            yield number, text_of(row, field, place(file, number))
        return
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if text := decoded(line, place(path, number)).strip():
                    yield number, text
    except OSError as error:
        raise ShoalError(f"cannot read {path}: {error.strerror or error}") from error
