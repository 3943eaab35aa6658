"""Write down what a recording says."""

from __future__ import annotations

import os.path
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.data.audio import MELS, SUFFIXES, Unreadable, log_mel, read_recording
from shoal.data.speech import Speech, frames_needed, frames_out
from shoal.errors import ShoalError, need
from shoal.models.acoustic import AcousticModel
from shoal.models.config import ModelConfig
from shoal.tasks import spec_augment
from shoal.tasks.base import Batch, LossSum, Ratio, Sample, Samples, Scores, Split
from shoal.tasks.ctc import CharacterModel, beam_search, best_path
from shoal.tasks.padding import pad
from shoal.tasks.speech_baselines import guesses

SHOWN = 5
"""Held-out recordings that `predict` writes down when it is asked for none."""
SCORED_AT_ONCE = 8


class SpeechRecognition:
    """CTC (Graves et al. 2006) over characters, in nats, summed over the characters of a batch.

    A batch holds `features` float [B, T, mels] and `target` int64 [B, S], padded with zeros, and
    their lengths, `frames` and `characters`, int64 [B].
    """

    unit = "characters"

    def __init__(self, model: ModelConfig, data: Speech) -> None:
        """Learn `data` with the network that `model` sizes."""
        self.model_config = model
        self.data = data

    @property
    def fingerprint(self) -> str:
        """Equal where the samples are equal."""
        return self.data.fingerprint

    @cached_property
    def language(self) -> CharacterModel:
        """What is said in the training recordings, and in no others."""
        return CharacterModel(self.data.texts(self.data.train), self.data.alphabet)

    def build_model(self) -> nn.Module:
        """The network, on the CPU in fp32."""
        config = self.model_config
        symbols = len(self.data.alphabet) + 1
        return AcousticModel(config.dimensions, MELS, symbols, config.dropout)

    def samples(self, split: Split) -> Samples:
        """Recordings with their characters."""
        return self.data.train if split == "train" else self.data.held_out

    def collate(self, samples: Sequence[Sample]) -> Mapping[str, Tensor]:
        """Pad recordings and targets to the longest of the batch, and count what is real."""
        rows = [
            {
                "features": sample["features"],
                "target": sample["target"],
                "frames": torch.tensor(len(sample["features"])),
                "characters": torch.tensor(len(sample["target"])),
            }
            for sample in samples
        ]
        return pad(rows, {"features": 0.0, "target": 0})

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        """Sum over the recordings of -log p(text), and how many characters those have."""
        features_BTM, frames_B = batch["features"].float(), batch["frames"]
        if model.training:
            features_BTM, frames_B = self._augmented(batch)
        logits_BUV, frames_B = model(features_BTM, frames_B)
        total = ctc_sum(logits_BUV, frames_B, batch["target"], batch["characters"])
        return LossSum(total, int(batch["characters"].sum()))

    def _augmented(self, batch: Batch) -> tuple[Tensor, Tensor]:
        features_BTM, frames_B = batch["features"].float(), batch["frames"]
        moved_BTM, moved_B = spec_augment.stretch(features_BTM, frames_B)
        # A text must still fit into a recording that became faster: its loss is infinite else.
        lengths, targets_BS = batch["characters"].tolist(), batch["target"].cpu()
        if all(
            frames_out(frames) >= frames_needed(target[:length])
            for frames, target, length in zip(moved_B.tolist(), targets_BS, lengths, strict=True)
        ):
            features_BTM, frames_B = moved_BTM, moved_B
        return spec_augment.mask(features_BTM, frames_B), frames_B

    @torch.no_grad()
    def metrics(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        """`loss`: nats per character. `cer`: edits per character, by greedy decoding."""
        logits_BUV, frames_B = model(batch["features"].float(), batch["frames"])
        total = ctc_sum(logits_BUV, frames_B, batch["target"], batch["characters"])
        written = [self._greedy(row) for row in _recordings(logits_BUV, frames_B)]
        lengths = batch["characters"].tolist()
        truth = [self.data.text(t[:n].cpu()) for t, n in zip(batch["target"], lengths, strict=True)]
        edits, characters = _edits(truth, written, words=False)
        return {"loss": Ratio(float(total), characters), "cer": Ratio(edits, characters)}

    def scores(self, model: nn.Module) -> Scores:
        """Character and word error rates of all held-out recordings.

        `cer` and `wer` use a beam with a language model of the training texts; `greedy_cer` and
        `greedy_wer` use the sound alone.
        """
        rows = list(self.heard(model, self.data.held_out))
        truth = self.data.texts(self.data.held_out)
        beam = self._rates(truth, [self.written(row) for row in rows])
        greedy = self._rates(truth, [self._greedy(row) for row in rows])
        return {**beam, **{f"greedy_{name}": value for name, value in greedy.items()}}

    def baselines(self) -> Mapping[str, Scores]:
        """The same figures of `shoal.tasks.speech_baselines`, which know the training split."""
        train, held_out = self.data.train, self.data.held_out
        found = guesses(train, held_out, self.data.texts(train))
        truth = self.data.texts(held_out)
        return {name: self._rates(truth, texts) for name, texts in found.items()}

    def predict(self, model: nn.Module, source: str | None) -> Iterator[Mapping[str, Any]]:
        """`file` and `text` of a recording, or of all in a folder; held-out ones have `truth`."""
        if source is not None:
            for path in recordings_of(source):
                features_TM = torch.from_numpy(_features(path))
                [row] = self.heard(model, [{"features": features_TM, "target": torch.zeros(0)}])
                yield {"file": str(path), "text": self.written(row)}
            return
        held_out = self.data.held_out
        texts = self.data.texts(held_out)
        count = min(SHOWN, len(held_out))
        for i in (j * len(held_out) // count for j in range(count)):
            [row] = self.heard(model, [held_out[i]])
            name = self.data.name(held_out, i)
            yield {"file": name, "text": self.written(row), "truth": texts[i]}

    @torch.no_grad()
    def heard(self, model: nn.Module, samples: Samples | Sequence[Sample]) -> Iterator[Tensor]:
        """log p of each symbol, [U, V] on the CPU, for each recording."""
        device = next(model.parameters()).device
        for start in range(0, len(samples), SCORED_AT_ONCE):
            stop = min(start + SCORED_AT_ONCE, len(samples))
            batch = self.collate([samples[i] for i in range(start, stop)])
            features_BTM = batch["features"].float().to(device)
            logits_BUV, frames_B = model(features_BTM, batch["frames"].to(device))
            yield from _recordings(logits_BUV, frames_B)

    def _greedy(self, log_probabilities_UV: Tensor) -> str:
        return self.data.text(best_path(log_probabilities_UV))

    def written(self, log_probabilities_UV: Tensor) -> str:
        """The text of a recording, by a beam with the language model."""
        return beam_search(log_probabilities_UV, self.language)

    def _rates(self, truth: list[str], written: list[str]) -> Scores:
        cer, wer = (_edits(truth, written, words=words) for words in (False, True))
        return {"cer": cer[0] / cer[1], "wer": wer[0] / wer[1]}


def ctc_sum(
    logits_BUV: Tensor, frames_B: Tensor, target_BS: Tensor, characters_B: Tensor
) -> Tensor:
    """Sum of -log p(target), 0-d. It is computed on the CPU, where its gradient repeats its bits.

    (CUDA adds the gradient up in an order that changes from call to call.)
    """
    log_probabilities_UBV = logits_BUV.float().log_softmax(dim=2).transpose(0, 1).cpu()
    total = F.ctc_loss(
        log_probabilities_UBV, target_BS.cpu(), frames_B.cpu(), characters_B.cpu(), reduction="sum"
    )
    return total.to(logits_BUV.device)


def recordings_of(source: str) -> list[Path]:
    """The file that `source` names, or the recordings in that folder, sorted. Raises ShoalError."""
    path = Path(source)
    # (os.path.isfile, other than Path.is_file, is False for a text that is too long for a name.)
    if os.path.isfile(path):
        return [path]
    if not os.path.isdir(path):
        raise ShoalError(f"there is no recording {source!r}: give a file or a folder of recordings")
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise ShoalError(f"the folder {path} holds no {', '.join(SUFFIXES)} file")
    return found


def _features(path: Path) -> Any:
    try:
        return log_mel(read_recording(path, str(path)).samples)
    except Unreadable as reason:
        raise ShoalError(f"{path} cannot be read as a recording ({reason})") from None


def _recordings(logits_BUV: Tensor, frames_B: Tensor) -> Iterator[Tensor]:
    """log p [U, V] of each recording, without its padding, on the CPU."""
    for logits_UV, frames in zip(logits_BUV.float().cpu(), frames_B.tolist(), strict=True):
        yield logits_UV[:frames].log_softmax(dim=1)


def _edits(truth: list[str], written: list[str], *, words: bool) -> tuple[int, int]:
    """The fewest insertions, deletions and substitutions, and the length of the truth."""
    jiwer = need("jiwer", "audio", "measuring error rates")
    measure = jiwer.process_words if words else jiwer.process_characters
    found = measure(truth, written)
    length = found.hits + found.substitutions + found.deletions
    return found.insertions + found.substitutions + found.deletions, length
