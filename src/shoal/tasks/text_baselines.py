"""What a classifier of texts has to beat, and the figures they are compared by."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from shoal.data.labelled import Labelled
from shoal.errors import need
from shoal.tasks.base import Scores

STRENGTHS = (0.25, 1.0, 4.0, 16.0)
"""Of logistic regression, `C`: the inverse of its regularisation."""

FOLDS = 3

MOST_TERMS = 100_000
"""The most frequent ones: long texts have millions of pairs of words."""


def class_scores(truth: Any, found: Any, classes: int) -> Scores:
    """`accuracy` and `F1`, the harmonic mean of precision and recall.

    Of two classes F1 is that of the second one in the alphabet (positive, spam, true, yes, 1);
    of more it is the mean over those that occur in `truth` (macro).

    Args:
        truth: int [texts], the labels.
        found: int [texts], the predictions.
        classes: how many classes there are.
    """
    counted = [1] if classes == 2 else np.unique(truth).tolist()
    return {
        "accuracy": float(np.mean(truth == found)),
        "F1": float(np.mean([_f1(truth == label, found == label) for label in counted])),
    }


def _f1(truth: Any, found: Any) -> float:
    either = int(truth.sum()) + int(found.sum())
    return 2 * int((truth & found).sum()) / either if either else 1.0


def baselines(data: Labelled) -> Mapping[str, Scores]:
    """The figures of simple methods that learned from the training split alone.

    `majority class`; `bag of words`: logistic regression on the TF-IDF of words; and `words and
    pairs`, which sees pairs of neighbouring words as well. Their regularisation is chosen by
    cross-validation inside the training split, with groups kept together there too.
    """
    truth, labels = data.labels[data.held_out], data.labels[data.train]
    found = {
        "majority class": np.full_like(truth, np.bincount(labels).argmax()),
        "bag of words": _logistic_regression(data, longest=1),
        "words and pairs": _logistic_regression(data, longest=2),
    }
    return {name: class_scores(truth, each, len(data.classes)) for name, each in found.items()}


def _logistic_regression(data: Labelled, longest: int) -> Any:
    """int [held-out texts]: its predictions from runs of up to `longest` words."""
    purpose = "the bag of words that a model has to beat"
    text = need("sklearn.feature_extraction.text", "text", purpose)
    linear = need("sklearn.linear_model", "text", purpose)
    selection = need("sklearn.model_selection", "text", purpose)
    labels, groups = data.labels[data.train], data.groups[data.train]
    # What occurs in one text only tells nothing; of a handful of texts it is nearly all there is.
    rarest = 2 if len(labels) > 100 else 1
    terms = text.TfidfVectorizer(
        ngram_range=(1, longest),
        min_df=rarest,
        max_features=MOST_TERMS,
        sublinear_tf=True,
        token_pattern=r"\w+",
    )
    try:
        features = terms.fit_transform(data.text(int(i)) for i in data.train)
    except ValueError as error:  # no word is in enough texts, and the most common class is left
        if not re.search("empty vocabulary|no terms remain", str(error)):
            raise
        return np.full(len(data.held_out), np.bincount(labels).argmax())
    held_out = terms.transform(data.text(int(i)) for i in data.held_out)
    regression = linear.LogisticRegression(max_iter=1000)
    folds = min(FOLDS, len(np.unique(groups)), int(np.bincount(labels).min()))
    if folds > 1:
        regression = selection.GridSearchCV(
            regression, {"C": STRENGTHS}, cv=selection.StratifiedGroupKFold(folds)
        )
    with warnings.catch_warnings():  # a fold of few groups may miss a class
        warnings.simplefilter("ignore")
        regression.fit(features, labels, **({"groups": groups} if folds > 1 else {}))
    return regression.predict(held_out)
