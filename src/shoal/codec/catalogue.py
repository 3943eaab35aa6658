"""All codecs by name, as their papers set them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from shoal.codec.base import Codec
from shoal.codec.bf16 import BF16
from shoal.codec.block import Int4, Int8
from shoal.codec.e3m0 import E3M0
from shoal.codec.identity import Identity
from shoal.codec.powersgd import PowerSGD
from shoal.codec.sign import Sign
from shoal.codec.topk import TopK
from shoal.config import suggestion
from shoal.errors import ShoalError

CODECS: dict[str, Callable[[], Codec]] = {
    "identity": Identity,
    "bf16": BF16,
    "int8": Int8,
    "int4": Int4,
    "e3m0": E3M0,
    "topk": TopK,
    "topk2": partial(TopK, value_bits=2),
    "sign": Sign,
    "powersgd": PowerSGD,
}


def codec_named(name: str) -> Codec:
    """The codec of that name; raises ShoalError with the nearest name where there is none."""
    if name not in CODECS:
        near = suggestion(name, list(CODECS))
        raise ShoalError(f"there is no codec {name!r}{near} (known: {', '.join(CODECS)})")
    return CODECS[name]()
