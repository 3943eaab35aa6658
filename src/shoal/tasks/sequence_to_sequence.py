"""Write one text for another: a translation, a summary."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoal.data.labelled import text_of
from shoal.data.pairs import Pairs, encoded, lines
from shoal.data.rows import SUFFIXES, place, read_rows
from shoal.errors import ShoalError
from shoal.models.config import ModelConfig
from shoal.models.encoder_decoder import EncoderDecoder
from shoal.models.sequence import NONE, SequenceModel, batches_by_length, beam_search
from shoal.tasks.base import Batch, LossSum, Ratio, Samples, Scores, Split
from shoal.tasks.cross_entropy import IGNORE
from shoal.tasks.padding import pad
from shoal.tasks.written import Measure

BEAM = 4
"""Candidates of a prediction."""

WRITTEN_AT_ONCE = 32
"""Sources for which targets are searched in one batch."""

EXAMPLES = 5
"""Held-out pairs that are shown where nothing is given."""

Baselines = Callable[[Sequence[str], Sequence[tuple[str, str]]], Mapping[str, list[str]]]
"""What simple methods write for sources, given the training pairs."""


class SequenceToSequence:
    """-log p of a target given its source, in nats, summed over the tokens of the targets.

    A batch holds `source` [B, S] (-1 after a row's end) and `target` [B, T] (-100 after it).
    """

    unit = "tokens"

    def __init__(
        self,
        model: ModelConfig,
        data: Pairs,
        *,
        measure: Measure,
        baselines: Baselines,
        judged: int,
        text_field: str = "text",
    ) -> None:
        """Learn `data` with the model that `model` describes.

        Args:
            model: the sizes, or a folder.
            data: the pairs.
            measure: the figures of texts that were written.
            baselines: the simple methods.
            judged: how many held-out pairs are judged by `scores`, spread evenly over all:
                writing takes much longer than reading.
            text_field: the column of the sources, in tables that are predicted.
        """
        self.model_config, self.data = model, data
        self.measure, self.simple_methods = measure, baselines
        self._text_field = text_field
        held_out = len(data.held_out)
        judged = min(judged, held_out)
        self.judged = [i * held_out // judged for i in range(judged)]
        """The held-out pairs that are judged: those of `shoal.train.evaluate`."""

    @property
    def tokenizer(self) -> Any:
        """What turns this task's tokens back into text."""
        return self.data.tokenizer

    @property
    def fingerprint(self) -> str:
        """Equal where the samples are equal."""
        return self.data.fingerprint

    def build_model(self) -> nn.Module:
        """The model, on the CPU in fp32. Raises ShoalError where the folder holds none."""
        vocab_size = self.data.tokenizer.vocab_size
        path = self.model_config.path
        if path is None:
            return EncoderDecoder(self.model_config, vocab_size, self.data.tokenizer.end_of_text)
        from shoal.models.hugging_face_sequence import load_sequence_model

        model = load_sequence_model(path)
        if model.vocab_size < vocab_size:
            raise ShoalError(
                f"the model in {path} knows {model.vocab_size} tokens, but the data's tokenizer "
                f"has {vocab_size}; use the model's own tokenizer"
            )
        return model

    def samples(self, split: Split) -> Samples:
        """Pairs of token sequences."""
        return self.data.train if split == "train" else self.data.held_out

    def collate(self, samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Pad to the longest source and the longest target of the samples."""
        return pad(samples, {"source": NONE, "target": IGNORE})

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        """Sum over the target tokens of -log p(token), and how many there are."""
        total = model(batch["source"], batch["target"])
        return LossSum(total, int((batch["target"] != IGNORE).sum()))

    @torch.no_grad()
    def metrics(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        """`loss`: nats per target token."""
        total, count = self.loss(model, batch)
        return {"loss": Ratio(float(total), count)}

    def scores(self, model: nn.Module) -> Scores:
        """The figures of what a beam search writes for the judged pairs."""
        sources, true = self._judged_texts()
        return self.measure(self.write(model, sources), true)

    def baselines(self) -> Mapping[str, Scores]:
        """The same figures of what simple methods write for the same pairs."""
        sources, true = self._judged_texts()
        train = [self.data.train.text(i) for i in range(len(self.data.train))]
        written = self.simple_methods(sources, train)
        return {name: self.measure(texts, true) for name, texts in written.items()}

    def predict(self, model: nn.Module, source: str | None) -> Iterator[Mapping[str, Any]]:
        """What the model writes: for a text, each line of a file or row of a table, or held out."""
        if source is None:
            count = len(self.judged)
            for i in self.judged[:: max(1, count // EXAMPLES)][:EXAMPLES]:
                text, true = self.data.held_out.text(i)
                yield {"source": text, "written": self.write(model, [text])[0], "truth": true}
        elif os.path.isfile(source):  # also False for a text that is too long for a name
            for line in _file_lines(Path(source), self._text_field):
                yield self._written_for(model, line)
        elif os.path.isdir(source):
            raise ShoalError(f"{source} is a folder: give a text, or a file of texts")
        elif source.strip():
            yield self._written_for(model, source)
        else:
            raise ShoalError("there is no text to write for: it is empty")

    def write(self, model: nn.Module, sources: Sequence[str], *, width: int = BEAM) -> list[str]:
        """What the model, in evaluation mode, writes for each text; a beam of 1 is greedy."""
        assert isinstance(model, SequenceModel)
        device = next(model.parameters()).device
        rows = [encoded(self.tokenizer, text, self.data.length)[0] for text in sources]
        written = [""] * len(rows)
        for numbers in batches_by_length([len(row) for row in rows], WRITTEN_AT_ONCE):
            batch = torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(rows[i]) for i in numbers], batch_first=True, padding_value=NONE
            )
            found = beam_search(
                model, batch.to(device), width=width,
                end=self.tokenizer.end_of_text, longest=self.data.length,
            )  # fmt: skip
            for i, tokens in zip(numbers, found, strict=True):
                written[i] = self.tokenizer.decode(tokens).strip()
        return written

    def _written_for(self, model: nn.Module, text: str) -> dict[str, Any]:
        text = text.strip()
        row = {"written": self.write(model, [text])[0] if text else ""}
        if self.data.cut or encoded(self.tokenizer, text, self.data.length)[1]:
            return row
        return {**row, "note": f"only the first {self.data.length - 1} tokens were read"}

    def _judged_texts(self) -> tuple[list[str], list[str]]:
        texts = [self.data.held_out.text(i) for i in self.judged]
        return [source for source, _ in texts], [target for _, target in texts]


def _file_lines(path: Path, field: str) -> Iterator[str]:
    if path.suffix.lower() in SUFFIXES:
        for number, row in read_rows(path, (field,)):
            yield text_of(row, field, place(path, number))
        return
    try:
        yield from lines(path)
    except OSError as error:
        raise ShoalError(f"cannot read {path}: {error.strerror or error}") from error
