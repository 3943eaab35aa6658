"""How good written text is: BLEU, chrF and ROUGE, and what simple methods would have written."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from shoal.errors import need
from shoal.tasks.base import Scores

Measure = Callable[[Sequence[str], Sequence[str]], Scores]
"""Figures of texts (the first) against the true ones (the second)."""

SIGNATURES = {
    "bleu": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp",
    "chrf": "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no",
}
"""What sacrebleu was set to (its own signatures, without its version): figures of other
settings cannot be compared."""

NEIGHBOUR_ROWS = 256
"""Texts compared with all of the training split at once."""


def bleu_and_chrf(written: Sequence[str], true: Sequence[str]) -> Scores:
    """Corpus BLEU and chrF, each from 0 to 100, by sacrebleu."""
    metrics = need("sacrebleu.metrics", "text", "measuring translations")
    found = {}
    for name, metric in (("bleu", metrics.BLEU()), ("chrf", metrics.CHRF())):
        found[name] = float(metric.corpus_score(list(written), [list(true)]).score)
    return found


def rouge_and_chrf(written: Sequence[str], true: Sequence[str]) -> Scores:
    """ROUGE-L, ROUGE-1 and ROUGE-2 (mean F1, stemmed) and chrF, each from 0 to 100."""
    rouge = need("rouge_score.rouge_scorer", "text", "measuring summaries")
    names = ("rougeL", "rouge1", "rouge2")
    scorer = rouge.RougeScorer(names, use_stemmer=True)
    each = [scorer.score(right, left) for left, right in zip(written, true, strict=True)]
    means = {name: 100 * float(np.mean([row[name].fmeasure for row in each])) for name in names}
    return {**means, "chrf": bleu_and_chrf(written, true)["chrf"]}


def neighbours(sources: Sequence[str], train: Sequence[str]) -> list[int]:
    """For each source the number of the training source most like it.

    The likeness is the cosine of TF-IDF vectors over words and pairs of words.
    """
    text = need("sklearn.feature_extraction.text", "text", "the nearest-neighbour baseline")
    vectoriser = text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+")
    known = vectoriser.fit_transform(train).T.tocsc()
    rows = vectoriser.transform(sources)
    nearest: list[int] = []
    for start in range(0, len(sources), NEIGHBOUR_ROWS):
        likeness: Any = (rows[start : start + NEIGHBOUR_ROWS] @ known).toarray()
        nearest.extend(likeness.argmax(axis=1).tolist())
    return nearest


def first_sentence(text: str) -> str:
    """A text up to its first full stop, question mark or exclamation mark."""
    found = re.match(r".+?[.!?](?=\s|$)", text, re.DOTALL)
    return " ".join((found[0] if found else text).split())


def first_words(text: str, number: int) -> str:
    """A text's first words."""
    return " ".join(text.split()[:number])


def dictionary(pairs: Sequence[tuple[str, str]], rounds: int = 5) -> Mapping[str, str]:
    """For each source word the target word it most probably stands for.

    The probabilities are those of IBM model 1 (Brown et al. 1993, "The Mathematics of
    Statistical Machine Translation"), by expectation maximisation from a uniform start.
    """
    sources, source_words = _numbered([left.split() for left, _ in pairs])
    targets, target_words = _numbered([right.split() for _, right in pairs])
    lefts = [np.tile(s, len(t)) for s, t in zip(sources, targets, strict=True)]
    rights = [np.repeat(t, len(s)) for s, t in zip(sources, targets, strict=True)]
    # Each word of a target asks which word of its source brought it: a question is a segment.
    sizes = np.concatenate([np.full(len(t), len(s)) for s, t in zip(sources, targets, strict=True)])
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    left, right = np.concatenate(lefts).astype(np.int64), np.concatenate(rights).astype(np.int64)
    links, link = np.unique(left * len(target_words) + right, return_inverse=True)
    of_source = links // len(target_words)
    probability = np.ones(len(links))
    for _ in range(rounds):
        share = probability[link]
        share /= np.repeat(np.add.reduceat(share, starts), sizes)
        count = np.bincount(link, share, minlength=len(links))
        probability = count / np.bincount(of_source, count)[of_source]
    order = np.lexsort((probability, of_source))  # the last of a source word is its best
    best = links[order[np.append(of_source[order][1:] != of_source[order][:-1], True)]]
    return {
        source_words[number // len(target_words)]: target_words[number % len(target_words)]
        for number in best.tolist()
    }


def word_by_word(text: str, words: Mapping[str, str]) -> str:
    """Each word replaced by its entry; one without stays as it is."""
    return " ".join(words.get(word, word) for word in text.split())


def _numbered(texts: list[list[str]]) -> tuple[list[Any], list[str]]:
    numbers: dict[str, int] = {}
    rows = [np.array([numbers.setdefault(w, len(numbers)) for w in words]) for words in texts]
    return rows, list(numbers)
