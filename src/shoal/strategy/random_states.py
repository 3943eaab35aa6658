"""Random states as a function of (seed, step, leaf)."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def seed_everything(seed: int, step: int, leaf: int) -> None:
    """Seed every random state by (seed, step, leaf), so that a leaf is the same on any worker."""
    digest = hashlib.blake2b(f"{seed}/{step}/{leaf}".encode(), digest_size=8).digest()
    value = int.from_bytes(digest, "little")
    torch.manual_seed(value >> 1)
    np.random.seed(value % 2**32)
    random.seed(value)
