"""Tell the class of an image."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.errors import ShoalError, need
from shoal.models.config import ModelConfig
from shoal.models.image_classifier import ConvolutionalNet, VisionTransformer
from shoal.tasks.base import Batch, LossSum, Ratio, Samples, Scores, Split
from shoal.tasks.cross_entropy import cross_entropy_sum

if TYPE_CHECKING:
    from shoal.data.images import Images

KINDS = ("cnn", "vit")
TURN, SCALE, SHIFT = 0.15, 0.1, 0.08
"""How far training moves an image: radians, and shares of its size; each way, at most."""
BASELINE_IMAGES = 20_000
"""Training images that a baseline learns from, at most: a time limit, not a handicap."""
AT_ONCE = 256


class ImageClassification:
    """Cross-entropy of an image's class, in nats, summed over the images of a batch.

    A batch holds `image`, uint8 [B, C, H, W], and `label`, int64 [B].
    """

    def __init__(self, model: ModelConfig, data: Images) -> None:
        """Learn `data` with the network that `model.kind` names.

        Raises ShoalError for an unknown kind, or a key that it does not read.
        """
        kind = model.kind or KINDS[0]
        if kind not in KINDS:
            raise ShoalError(f"model.kind is {kind!r}, but must be one of {', '.join(KINDS)}")
        for key in ("heads", "hidden") if kind == "cnn" else ():
            if getattr(model, key) is not None:
                raise ShoalError(f"model.{key} has no effect with model.kind = 'cnn'; leave it out")
        self.model_config, self.kind, self.data = model, kind, data

    @property
    def fingerprint(self) -> str:
        """Equal where the samples are equal."""
        return self.data.fingerprint

    def build_model(self) -> nn.Module:
        """The network, on the CPU in fp32."""
        shape, classes = self.data.shape, len(self.data.classes)
        if self.kind == "vit":
            return VisionTransformer(
                self.model_config, shape.channels, shape.height, shape.width, classes
            )
        side = min(shape.height, shape.width)
        return ConvolutionalNet(self.model_config, shape.channels, side, classes)

    def samples(self, split: Split) -> Samples:
        """Images with their labels."""
        return self.data.train if split == "train" else self.data.held_out

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        """Sum over the images of -log p(class); in training each image is moved a little."""
        image_BCHW = batch["image"]
        if model.training:
            image_BCHW = moved(image_BCHW, mirror=self.data.mirror)
        logits_BK = model(image_BCHW)
        return LossSum(cross_entropy_sum(logits_BK, batch["label"]), len(logits_BK))

    @torch.no_grad()
    def metrics(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        """`loss`: nats per image. `accuracy`: the share of images told rightly."""
        logits_BK = model(batch["image"])
        hits = int((logits_BK.argmax(dim=1) == batch["label"]).sum())
        total, count = float(cross_entropy_sum(logits_BK, batch["label"])), len(logits_BK)
        return {"loss": Ratio(total, count), "accuracy": Ratio(hits, count)}

    def scores(self, model: nn.Module) -> Scores:
        """`accuracy` and `macro_f1` over all held-out images."""
        return self.figures(self.probabilities(model).argmax(axis=1))

    def probabilities(self, model: nn.Module) -> npt.NDArray[np.float32]:
        """float32 [N, K]: of each class, for all held-out images."""
        pixels_NCHW = self.data.held_out.pixels()
        found = [
            self.judged(model, pixels_NCHW[start : start + AT_ONCE])
            for start in range(0, len(pixels_NCHW), AT_ONCE)
        ]
        return np.concatenate(found)

    @torch.no_grad()
    def judged(
        self, model: nn.Module, pixels_BCHW: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.float32]:
        """float32 [B, K]: probabilities of each class."""
        device = next(model.parameters()).device
        logits_BK = model(torch.tensor(pixels_BCHW, device=device))
        probabilities: npt.NDArray[np.float32] = logits_BK.float().softmax(dim=1).cpu().numpy()
        return probabilities

    def figures(self, predicted_N: npt.NDArray[np.int64]) -> Scores:
        """The scores of predicted labels of the held-out images."""
        truth_N = self.data.held_out.labels
        return {
            "accuracy": float((predicted_N == truth_N).mean()),
            "macro_f1": macro_f1(predicted_N, truth_N),
        }

    def baselines(self) -> Mapping[str, Scores]:
        """The most common class; logistic regression on pixels; the nearest images.

        Their one constant each is chosen on a fifth of the training images, by group.
        """
        train = self.data.train
        images_ND = _flat(train.pixels(BASELINE_IMAGES))
        labels_N = train.labels[train.spread(len(images_ND))]
        asked_ND = _flat(self.data.held_out.pixels())
        common = np.bincount(labels_N).argmax()
        return {
            "most common class": self.figures(np.full(len(asked_ND), common)),
            "logistic regression": self.figures(_logistic(images_ND, labels_N, asked_ND)),
            "nearest neighbours": self.figures(_nearest(images_ND, labels_N, asked_ND)),
        }

    def predict(self, model: nn.Module, source: str | None) -> Iterator[Mapping[str, Any]]:
        """The class of an image, or of each image of a folder; without one, of ten held out.

        Raises ShoalError naming the file that is no image.
        """
        from shoal.data.image_files import SUFFIXES, read_image

        if source is None:
            held_out = self.data.held_out
            for index in held_out.spread(min(10, len(held_out))):
                row, pixels_CHW = held_out.numbers[index], held_out[index]["image"].numpy()
                truth = self.data.classes[held_out.labels[index]]
                yield {**self._told(model, self.data.names[row], pixels_CHW), "truth": truth}
            return
        place = Path(source).expanduser()
        if not place.exists():
            raise ShoalError(f"there is no image or folder {source!r}")
        files = [place]
        if place.is_dir():
            files = [p for p in sorted(place.rglob("*")) if p.suffix.lower() in SUFFIXES]
            if not files:
                raise ShoalError(f"the folder {place} holds no image ({', '.join(SUFFIXES)})")
        for file in files:
            yield self._told(model, str(file), read_image(file, self.data.shape))

    def _told(
        self, model: nn.Module, file: str, pixels_CHW: npt.NDArray[np.uint8]
    ) -> dict[str, Any]:
        probabilities_K = self.judged(model, pixels_CHW[None])[0]
        best = int(probabilities_K.argmax())
        return {
            "file": file,
            "class": self.data.classes[best],
            "probability": float(probabilities_K[best]),
        }


def moved(image_BCHW: Tensor, *, mirror: bool) -> Tensor:
    """Each image turned, scaled and shifted a little, and mirrored half of the time.

    Drawn from torch's global generator of the CPU. What comes in at the edges repeats them.

    Returns: float [B, C, H, W], in the range of the input.
    """
    count = len(image_BCHW)
    turn_B, scale_B, x_B, y_B, flip_B = torch.rand(5, count).mul(2).sub(1)
    angle_B, size_B = turn_B * TURN, 1 + scale_B * SCALE
    sign_B = torch.where(flip_B < 0, -1.0, 1.0) if mirror else torch.ones(count)
    cos_B, sin_B = angle_B.cos() * size_B, angle_B.sin() * size_B
    theta_B23 = torch.stack(  # output to input, in halves of the image
        [
            torch.stack([cos_B * sign_B, -sin_B, x_B * 2 * SHIFT], dim=1),
            torch.stack([sin_B * sign_B, cos_B, y_B * 2 * SHIFT], dim=1),
        ],
        dim=1,
    )
    float_BCHW = image_BCHW.float()
    grid = F.affine_grid(
        theta_B23.to(float_BCHW.device), list(float_BCHW.shape), align_corners=False
    )
    return F.grid_sample(float_BCHW, grid, padding_mode="border", align_corners=False)


def macro_f1(predicted_N: npt.NDArray[np.int64], truth_N: npt.NDArray[np.int64]) -> float:
    """The mean over the classes that occur of 2 hits / (predicted as it + truly it)."""
    least = max(predicted_N.max(), truth_N.max()) + 1
    hits_K = np.bincount(truth_N[predicted_N == truth_N], minlength=least)
    both_K = np.bincount(predicted_N, minlength=least) + np.bincount(truth_N, minlength=least)
    return float((2 * hits_K[both_K > 0] / both_K[both_K > 0]).mean())


def _flat(pixels_NCHW: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return pixels_NCHW.reshape(len(pixels_NCHW), -1).astype(np.float32) / np.float32(255)


def _logistic(
    images_ND: npt.NDArray[np.float32],
    labels_N: npt.NDArray[np.int64],
    asked_ND: npt.NDArray[np.float32],
) -> npt.NDArray[np.int64]:
    linear = need("sklearn.linear_model", "images", "the baseline of images")

    def fitted(strength: float, chosen: Any) -> Any:
        with warnings.catch_warnings(action="ignore"):  # it stops early on purpose
            return linear.LogisticRegression(C=strength, max_iter=100).fit(
                images_ND[chosen], labels_N[chosen]
            )

    return _best((0.003, 0.03, 0.3), fitted, images_ND, labels_N).predict(asked_ND)


def _nearest(
    images_ND: npt.NDArray[np.float32],
    labels_N: npt.NDArray[np.int64],
    asked_ND: npt.NDArray[np.float32],
) -> npt.NDArray[np.int64]:
    neighbours = need("sklearn.neighbors", "images", "the baseline of images")

    def fitted(count: int, chosen: Any) -> Any:
        return neighbours.KNeighborsClassifier(
            min(count, len(labels_N[chosen])), metric="cosine", algorithm="brute"
        ).fit(images_ND[chosen], labels_N[chosen])

    return _best((1, 3, 5), fitted, images_ND, labels_N).predict(asked_ND)


def _best(
    values: Any, fitted: Any, images_ND: npt.NDArray[np.float32], labels_N: npt.NDArray[np.int64]
) -> Any:
    """Fitted on all images with the value that does best on the last fifth of each class."""
    place_N = np.empty(len(labels_N))
    for label in np.unique(labels_N):
        place_N[labels_N == label] = np.linspace(0, 1, int((labels_N == label).sum()))
    first_N = place_N <= 0.8
    if first_N.all() or len(np.unique(labels_N[first_N])) < 2:
        return fitted(values[0], slice(None))
    rates = [fitted(v, first_N).score(images_ND[~first_N], labels_N[~first_N]) for v in values]
    return fitted(values[int(np.argmax(rates))], slice(None))
