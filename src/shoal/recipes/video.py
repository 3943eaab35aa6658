"""The next frame of a video.

clips -> grey frames of one size -> four in a row -> a small U-Net -> how the last one changes
"""

from __future__ import annotations

from collections.abc import Mapping

from shoal.config import JSON
from shoal.data.cache import Say, silent
from shoal.data.video import open_video
from shoal.errors import ShoalError
from shoal.tasks.next_frame import FramePrediction
from shoal.train.config import RunConfig

READS = ("data.source", "data.unreadable", "data.holdout", "model.depth", "model.width")


def defaults(*, pretrained: bool = False) -> Mapping[str, JSON]:
    """People crossing a square; the last fifth of the film is held out."""
    own: dict[str, JSON] = {
        "data.source": "vtest",
        "data.holdout": 0.2,
        "batch.global_batch": 16,
        "batch.micro_batch": 4,
        "budget.epochs": 16,
        "clip": None,
        "optimizer.lr": 2e-3,
        "optimizer.weight_decay": 0.01,
        "evaluation.samples": 64,
    }
    return own if pretrained else {**own, "model.depth": 3, "model.width": 32}


def build(config: RunConfig, say: Say = silent) -> FramePrediction:
    """The task of a configuration; `say` hears of work that takes a while."""
    if config.model.path is not None:
        raise ShoalError("the recipe 'video' trains its own network: leave model.path out")
    return FramePrediction(config.model, open_video(config.data, say))
