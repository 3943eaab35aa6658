"""Images by class.

a folder for each class -> pixels of one size -> a small network -> the class
"""

from __future__ import annotations

from collections.abc import Mapping

from shoal.config import JSON
from shoal.data.cache import Say, silent
from shoal.data.images import open_images
from shoal.errors import ShoalError
from shoal.tasks.image_classification import ImageClassification
from shoal.train.config import RunConfig

READS = (
    *("data.source", "data.unreadable", "data.holdout"),
    *("model.kind", "model.depth", "model.width", "model.heads", "model.hidden"),
    "model.dropout",
)


def defaults(*, pretrained: bool = False) -> Mapping[str, JSON]:
    """Silhouettes of animals and a convolutional network; `model.kind=vit` is the other one."""
    own: dict[str, JSON] = {
        "data.source": "animals",
        "data.holdout": 0.2,
        "batch.global_batch": 128,
        "batch.micro_batch": 32,
        "budget.steps": 900,
        "optimizer.lr": 3e-3,
        "optimizer.weight_decay": 0.05,
        "evaluation.samples": 512,
    }
    return own if pretrained else {**own, "model.kind": "cnn", "model.dropout": 0.1}


def build(config: RunConfig, say: Say = silent) -> ImageClassification:
    """The task of a configuration; `say` hears of work that takes a while."""
    if config.model.path is not None:
        raise ShoalError("the recipe 'images' trains its own networks: leave model.path out")
    return ImageClassification(config.model, open_images(config.data, say))
