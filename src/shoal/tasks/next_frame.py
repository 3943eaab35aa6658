"""Predict the next frame of a video."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from shoal.errors import ShoalError, need
from shoal.models.config import ModelConfig
from shoal.models.next_frame import NextFrame
from shoal.tasks.base import Batch, LossSum, Ratio, Samples, Scores, Split, collate_of

if TYPE_CHECKING:
    from shoal.data.video import Video

Predictor = Callable[[Tensor], Tensor]
"""From a context [B, T, H, W] in grey levels to the next frame [B, H, W]."""
AT_ONCE = 16


class FramePrediction:
    """The squared error of the next frame, in grey levels, summed over the pixels observed.

    A batch holds `context`, uint8 [B, T, H, W], `target`, uint8 [B, H, W], and `size`, int64
    [B, 2]: the height and width that a clip fills. What lies beyond is padding.
    """

    def __init__(self, model: ModelConfig, data: Video) -> None:
        """Learn `data` with a network of the size that `model` tells."""
        self.model_config, self.data = model, data

    @property
    def fingerprint(self) -> str:
        """Equal where the samples are equal."""
        return self.data.fingerprint

    def build_model(self) -> nn.Module:
        """The network, on the CPU in fp32."""
        from shoal.data.video import CONTEXT

        return NextFrame(self.model_config, CONTEXT)

    def samples(self, split: Split) -> Samples:
        """Frames in a row, and the next one."""
        return self.data.train if split == "train" else self.data.held_out

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        """Sum over the observed pixels of the squared error, and how many they are."""
        return _errors(model(batch["context"]), batch)

    @torch.no_grad()
    def metrics(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        """`loss`: squared error a pixel. `of_copying`: the same as a share of copying's."""
        total, count = _errors(model(batch["context"]), batch)
        copied, _ = _errors(copy_last(batch["context"]), batch)
        return {
            "loss": Ratio(float(total), count),
            "of_copying": Ratio(float(total), max(float(copied), 1e-9)),
        }

    def scores(self, model: nn.Module) -> Scores:
        """`skill`, `mse` and `psnr` over all held-out frames; see `figures`."""
        return self.figures(model)

    def baselines(self) -> Mapping[str, Scores]:
        """Copying the last frame, going on in a straight line, and the context's mean."""
        return {
            "copy of the last frame": self.figures(copy_last),
            "straight line": self.figures(straight_line),
            "mean of the context": self.figures(mean_of_context),
        }

    @torch.no_grad()
    def figures(self, predict: Predictor) -> Scores:
        """The scores of a way to predict.

        `skill`: 1 - mse / mse of copying the last frame; above 0 is better than to copy.
        `mse`: squared grey levels (0 to 255) a pixel. `psnr`: the same in decibels.
        """
        collate, held_out = collate_of(self), self.data.held_out
        device = next(predict.parameters()).device if isinstance(predict, nn.Module) else None
        total, copied, count = 0.0, 0.0, 0
        for start in range(0, len(held_out), AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, len(held_out)))
            batch = {
                name: value.to(device) if device else value
                for name, value in collate([held_out[i] for i in numbers]).items()
            }
            summed, pixels = _errors(_shown(predict(batch["context"])), batch)
            total, count = total + float(summed), count + pixels
            copied += float(_errors(copy_last(batch["context"]), batch)[0])
        mse = total / count
        return {
            "skill": _skill(total, copied),
            "mse": mse,
            "psnr": 10 * math.log10(255**2 / max(mse, 1e-10)),
        }

    @torch.no_grad()
    def predict(self, model: nn.Module, source: str | None) -> Iterator[Mapping[str, Any]]:
        """The frame after the last one of a video or a folder of frames; it is written to a PNG.

        The file lies in the folder where the program runs. Its row also tells how well the
        known frames of the clip are predicted. Without a source: five held-out frames, each
        with its error and that of a copy of the frame before.

        Raises ShoalError naming the file that cannot be read, or a clip that is too short.
        """
        if source is not None:
            yield self._after(model, Path(source).expanduser())
            return
        held_out = self.data.held_out
        count = min(5, len(held_out))
        for i in range(count):
            index = i * len(held_out) // count
            clip, frame = self.data.place(int(held_out.starts[index]))
            yield {"clip": clip, "frame": frame, **_compared(model, [held_out[index]])}

    def _after(self, model: nn.Module, path: Path) -> Mapping[str, Any]:
        from shoal.data.video import CONTEXT, read_clip

        if not path.exists():
            raise ShoalError(f"there is no video or folder of frames {str(path)!r}")
        recent: list[Tensor] = []
        sums = [0.0, 0.0, 0.0]
        size = (0, 0)
        for frame_HW, filled in read_clip(path, self.data.height, self.data.width):
            if frame_HW is None:
                recent.clear()
                continue
            size = filled
            recent.append(torch.from_numpy(frame_HW))
            if len(recent) > CONTEXT:
                sample = _sample(recent)
                found = _sums(model, {name: value[None] for name, value in sample.items()}, size)
                sums = [a + b for a, b in zip(sums, found, strict=True)]
                del recent[0]
        if len(recent) < CONTEXT:
            raise ShoalError(
                f"{path} ends with {len(recent)} frames in a row, and the next one is predicted "
                f"from {CONTEXT}"
            )
        context_BTHW = torch.stack(recent[-CONTEXT:])[None].to(_device(model))
        next_HW = _shown(model(context_BTHW))[0, : size[0], : size[1]].round().byte().cpu()
        written = _write(next_HW, path)
        row: dict[str, Any] = {"clip": str(path), "next_frame": str(written)}
        return {**row, **_errors_told(*sums)} if sums[2] else row


def copy_last(context_BTHW: Tensor) -> Tensor:
    """The last frame again."""
    return context_BTHW[:, -1].float()


def straight_line(context_BTHW: Tensor) -> Tensor:
    """Each pixel changes once more as it did last."""
    return 2 * context_BTHW[:, -1].float() - context_BTHW[:, -2].float()


def mean_of_context(context_BTHW: Tensor) -> Tensor:
    """What stands still, and a blur of what moves."""
    return context_BTHW.float().mean(dim=1)


def _shown(frame_BHW: Tensor) -> Tensor:
    """As a picture can show it: no grey level below 0 or above 255."""
    return frame_BHW.float().clamp(0, 255)


def _errors(predicted_BHW: Tensor, batch: Batch) -> LossSum:
    size_B2 = batch["size"]
    height, width = predicted_BHW.shape[1:]
    rows_BH = torch.arange(height, device=size_B2.device) < size_B2[:, :1]
    columns_BW = torch.arange(width, device=size_B2.device) < size_B2[:, 1:]
    observed_BHW = rows_BH[:, :, None] & columns_BW[:, None, :]
    error_BHW = (predicted_BHW.float() - batch["target"].float()) * observed_BHW
    return LossSum((error_BHW**2).sum(), int(size_B2.prod(dim=1).sum()))


def _skill(total: float, copied: float) -> float:
    """1 is perfect, 0 as good as copying. Where nothing moves, copying is perfect."""
    if copied == 0:
        return 0.0 if total == 0 else -math.inf
    return 1 - total / copied


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _sample(recent: list[Tensor]) -> dict[str, Tensor]:
    return {"context": torch.stack(recent[:-1]), "target": recent[-1]}


def _sums(model: nn.Module, batch: dict[str, Tensor], size: tuple[int, int]) -> list[float]:
    """Squared errors of the model and of copying, and the pixels of both."""
    sizes_B2 = torch.tensor([size] * len(batch["target"]))
    whole = {n: v.to(_device(model)) for n, v in {**batch, "size": sizes_B2}.items()}
    total, count = _errors(_shown(model(whole["context"])), whole)
    return [float(total), float(_errors(copy_last(whole["context"]), whole)[0]), count]


def _compared(model: nn.Module, samples: list[Any]) -> Mapping[str, float]:
    size = (int(samples[0]["size"][0]), int(samples[0]["size"][1]))
    batch = {name: torch.stack([s[name] for s in samples]) for name in ("context", "target")}
    return _errors_told(*_sums(model, batch, size))


def _errors_told(total: float, copied: float, count: float) -> Mapping[str, float]:
    return {"mse": total / count, "mse_of_copying": copied / count}


def _write(frame_HW: Tensor, source: Path) -> Path:
    """Write the picture where the program runs, under a name that no file has."""
    cv2 = need("cv2", "video", "writing a frame")
    stem = f"{source.resolve().stem}-next"
    path, number = Path(f"{stem}.png"), 1
    while path.exists():
        number += 1
        path = Path(f"{stem}-{number}.png")
    path.write_bytes(cv2.imencode(".png", frame_HW.numpy())[1].tobytes())
    return path
