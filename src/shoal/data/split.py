"""Which rows are held out: by a hash of their group, so that no group is on both sides."""

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from shoal.errors import ShoalError

Mask = npt.NDArray[np.bool_]


def share_of(name: str) -> float:
    """The name's hash as a fraction of all hashes, in [0, 1)."""
    first = hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:6]
    return int.from_bytes(first, "big") / 2**48


def hold_out(groups: Iterable[str], holdout: float, where: str) -> Mask:
    """bool [rows]: True where a row's group is held out; at least one group is on each side.

    A group keeps its side when others come or go. Rows that may tell each other's answer (of
    one document, patient, unit, speaker, day) belong to one group.

    Raises ShoalError naming `where` they are from, where all rows are of one group.
    """
    names = list(groups)
    shares = {name: share_of(name) for name in dict.fromkeys(names)}
    if len(shares) < 2:
        raise ShoalError(
            f"{where} has {len(shares)} group to split by, and needs two: one to learn from, "
            "one to hold out"
        )
    held = {name for name, share in shares.items() if share < holdout}
    held = held or {min(shares, key=shares.__getitem__)}
    if len(held) == len(shares):
        held.remove(max(shares, key=shares.__getitem__))
    return np.array([name in held for name in names])
