"""From the frames of a CTC model to characters: the best path, or a beam with a language model."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable

from torch import Tensor

BLANK = 0
END = "\n"
"""Ends a text in the language model; no normalised text holds it."""
LEAST = 1e-4
"""Symbols less likely than this in a frame do not extend a beam there."""


def best_path(log_probabilities_UV: Tensor) -> list[int]:
    """Greedy decoding: the likeliest symbol of each frame, repeats merged, blanks left out."""
    path = log_probabilities_UV.argmax(dim=1).tolist()
    return [s for i, s in enumerate(path) if s != BLANK and (i == 0 or path[i - 1] != s)]


class CharacterModel:
    """How likely a character follows others: n-grams of characters, counted in training texts.

    p(c | h) = (n(hc) + t(h) p(c | h')) / (n(h) + t(h)), where t(h) is how many different
    characters followed h, and h' is h without its first character (Witten and Bell 1991).
    """

    def __init__(self, texts: Iterable[str], alphabet: str, order: int = 8) -> None:
        """Count in `texts` whose characters are of `alphabet`."""
        self.order, self.alphabet = order, alphabet
        self._counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._memory: dict[tuple[str, str], float] = {}
        for text in texts:
            line = END + text + END  # what begins a text follows the end of another
            for i in range(1, len(line)):
                for length in range(order):
                    if length <= i:
                        self._counts[line[i - length : i]][line[i]] += 1

    def log(self, character: str, before: str) -> float:
        """log p(character | before); `before` is all of the text so far, `END` included."""
        tail = before[-self.order + 1 :] if self.order > 1 else ""
        key = (tail, character)
        if key not in self._memory:
            self._memory[key] = math.log(self._probability(character, tail))
        return self._memory[key]

    def _probability(self, character: str, before: str) -> float:
        shorter = (
            self._probability(character, before[1:]) if before else 1 / (len(self.alphabet) + 1)
        )
        counts = self._counts.get(before)
        if not counts:
            return shorter
        kinds = len(counts)
        return (counts[character] + kinds * shorter) / (counts.total() + kinds)


def beam_search(
    log_probabilities_UV: Tensor,
    language: CharacterModel,
    *,
    width: int = 16,
    weight: float = 0.5,
    bonus: float = 1.0,
) -> str:
    """The text with the highest log p(text | sound) + weight log p(text) + bonus characters.

    p(text | sound) sums over all alignments of the texts that are in the beam (Hannun et al.
    2014, "First-pass large vocabulary continuous speech recognition").

    Args:
        log_probabilities_UV: [U, V]; symbol i > 0 is character i - 1 of the model's alphabet.
        language: what is said in the training texts.
        width: texts that are kept at each frame.
        weight: of the language model.
        bonus: for each character; without it the language model prefers short texts.
    """
    rows = log_probabilities_UV.double().exp().tolist()
    beam: dict[str, tuple[float, float]] = {"": (1.0, 0.0)}
    prior = {"": 0.0}  # logarithms, which do not overflow
    for row in rows:
        symbols = [s for s in range(1, len(row)) if row[s] >= LEAST]
        found: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for text, (blank, symbol) in beam.items():
            found[text][0] += (blank + symbol) * row[BLANK]
            for s in symbols:
                character = language.alphabet[s - 1]
                longer = text + character
                if text.endswith(character):  # a repeat is one, unless a blank lies between
                    found[text][1] += symbol * row[s]
                    found[longer][1] += blank * row[s]
                else:
                    found[longer][1] += (blank + symbol) * row[s]
                if longer not in prior:
                    step = weight * language.log(character, END + text) + bonus
                    prior[longer] = prior[text] + step
        score = {t: _log(sum(both)) + prior[t] for t, both in found.items()}
        best = sorted(score, key=lambda t: (-score[t], t))[:width]
        # All are divided by one number, so that long recordings do not underflow.
        largest = max(sum(found[t]) for t in best) or 1.0
        beam = {t: (found[t][0] / largest, found[t][1] / largest) for t in best}

    def whole(text: str) -> float:
        return _log(sum(beam[text])) + prior[text] + weight * language.log(END, END + text)

    return max(sorted(beam), key=whole)


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf
