"""Recordings from files, and what a network hears of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shoal.errors import ShoalError, need

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
RATE = 8000
"""Samples a second. Telephone speech has no more, and most of what words need lies below 4 kHz."""
WINDOW, HOP, FFT = 200, 80, 512
"""25 ms and 10 ms; the window is filled up with zeros, so that narrow bands have bins."""
MELS = 40
LONGEST = 30.0
"""Seconds of the longest recording: what one leaf must hold."""
DYNAMIC_RANGE = 1e-6
"""Power below this share of the loudest counts as this share: digital silence has no log."""


class Unreadable(Exception):
    """The bytes are no recording that can be decoded."""


class Recording(NamedTuple):
    """What a file holds, as one channel at `RATE`."""

    samples: npt.NDArray[np.float32]
    channels: int
    """Of the file, before they were averaged."""
    rate: int
    """Of the file, before it was resampled."""


def duration(path: Path) -> float:
    """Seconds, as the file's header says. Raises `Unreadable`."""
    soundfile = need("soundfile", "audio", "reading recordings")
    try:
        info = soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError, RuntimeError) as error:
        raise Unreadable(str(error)) from None
    return float(info.frames / info.samplerate)


def read_recording(path: Path, where: str) -> Recording:
    """Decode a file, average its channels, resample it to `RATE`.

    Raises:
        Unreadable: it cannot be decoded.
        ShoalError: it is empty, longer than `LONGEST`, or holds a sample that is no number;
            the sentence begins with `where`.
    """
    seconds = duration(path)
    if seconds > LONGEST:
        raise ShoalError(f"{where} is {seconds:.0f} s long, and {LONGEST:.0f} s is the most")
    soundfile = need("soundfile", "audio", "reading recordings")
    try:
        samples_TC, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, RuntimeError) as error:
        raise Unreadable(str(error)) from None
    if len(samples_TC) == 0:
        raise ShoalError(f"{where} is empty: it holds no sample")
    finite_T = np.isfinite(samples_TC).all(axis=1)
    if not finite_T.all():
        raise ShoalError(
            f"{where} holds a sample that is no finite number, at {finite_T.argmin() / rate:.3f} s"
        )
    channels = samples_TC.shape[1]
    samples = samples_TC.mean(axis=1)
    if rate != RATE:
        soxr = need("soxr", "audio", "resampling recordings")
        samples = soxr.resample(samples, rate, RATE)
    return Recording(np.ascontiguousarray(samples, dtype=np.float32), channels, rate)


def log_mel(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """float32 [1 + len(samples) // HOP, MELS]: log power in bands, with mean 0 and deviation 1.

    The mean is one number for the whole recording: it takes the loudness away. A mean for each
    band would take the vowel away as well, where a recording is one short word.
    """
    wave = torch.from_numpy(samples)
    wave = wave[1:] - 0.97 * wave[:-1] if len(wave) > 1 else wave  # lifts the high bands
    spectrum_FT = torch.stft(
        torch.nn.functional.pad(wave, (FFT // 2, FFT // 2 + 1)), FFT, HOP, WINDOW,
        torch.hann_window(WINDOW), center=False, return_complex=True,
    )  # fmt: skip
    power_TM = spectrum_FT.abs().square().T @ mel_matrix()
    loudest = float(power_TM.max())
    if loudest == 0:  # nothing but digital silence
        return np.zeros(tuple(power_TM.shape), np.float32)
    logs_TM = power_TM.clamp(min=loudest * DYNAMIC_RANGE).log()
    values_TM = (logs_TM - logs_TM.mean()) / (logs_TM.std() + 1e-3)
    return values_TM.numpy()


def mel_matrix() -> Tensor:
    """float32 [FFT // 2 + 1, MELS]: triangles whose corners lie evenly on the mel scale.

    mel(f) = 2595 log10(1 + f / 700) (O'Shaughnessy 1987), from 60 Hz to half of `RATE`.
    """
    low, high = (2595 * math.log10(1 + f / 700) for f in (60, RATE / 2))
    corners = 700 * (10 ** (torch.linspace(low, high, MELS + 2, dtype=torch.float64) / 2595) - 1)
    bins_F1 = torch.linspace(0, RATE / 2, FFT // 2 + 1, dtype=torch.float64)[:, None]
    left, peak, right = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (bins_F1 - left) / (peak - left), (right - bins_F1) / (right - peak)
    return torch.minimum(rising, falling).clamp(min=0).float()
