"""What a message is made of: a header of a known kind in an envelope, and raw bytes.

A message has one or two frames. The first is MessagePack: an envelope with the version, the job
and the sender's role, and in it the header, one of the kinds that the receiver names. The second
frame is a tensor's own bytes. Its dtype and shape are in the header, and are checked against its
length before anything is made of it. Nothing in a message can name code.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec
import torch
from torch import Tensor

from shoal.errors import ShoalError
from shoal.wire.ledger import Purpose

Role = Literal["worker", "server"]

VERSION = 1
LONGEST_HEADER = 64 << 10  # bytes
LONGEST_PAYLOAD = 16 << 20  # bytes


class Malformed(ShoalError):
    """What arrived is no message of this job and version. The text is the reason, in short."""


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """The header that tells a peer why what it sent was refused."""

    reason: str


class _Envelope(msgspec.Struct, frozen=True, array_like=True):
    version: int
    job: str
    role: Role
    header: msgspec.Raw


class Kinds:
    """Reads and writes headers: those of a tagged union of msgspec structs, and `Refusal`."""

    def __init__(self, kinds: Any, *, job: str) -> None:
        self._job = job
        self._envelope = msgspec.msgpack.Decoder(_Envelope)
        self._header = msgspec.msgpack.Decoder(kinds | Refusal)
        self._encoder = msgspec.msgpack.Encoder()

    def write(self, header: msgspec.Struct, role: Role) -> bytes:
        """The first frame. Raises ValueError for a header that is too long."""
        # A refusal may go to a stranger, who need not learn the job's name.
        job = "" if isinstance(header, Refusal) else self._job
        raw = msgspec.Raw(self._encoder.encode(header))
        frame = self._encoder.encode(_Envelope(VERSION, job, role, raw))
        if len(frame) > LONGEST_HEADER:
            raise ValueError(f"a {type(header).__name__} of {len(frame)} bytes is too long")
        return frame

    def read(self, frame: memoryview) -> tuple[Role, Any]:
        """The sender's role and the header. Raises Malformed with the reason."""
        if len(frame) > LONGEST_HEADER:
            raise Malformed("a header that is too long")
        try:
            envelope = self._envelope.decode(frame)
        except _GARBAGE as error:
            raise Malformed("not a message of Shoal's") from error
        if envelope.version != VERSION:
            raise Malformed(f"another version of Shoal's messages (not {VERSION})")
        try:
            header = self._header.decode(envelope.header)
        except _GARBAGE as error:
            raise Malformed("a message of an unknown kind") from error
        if envelope.job != self._job and not isinstance(header, Refusal):
            raise Malformed("another job")
        return envelope.role, header


# What msgspec raises on bytes that are not what it wants: text that is not UTF-8 and nesting
# without end are Python's own errors.
_GARBAGE = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError, MemoryError)


def purpose_of(header: Any) -> Purpose:
    """What the ledger calls a payload: the header's `purpose`, or "meta"."""
    purpose: Purpose = getattr(header, "purpose", "meta")
    if purpose not in get_args(Purpose):
        raise ValueError(f"{type(header).__name__}.purpose is {purpose!r}")
    return purpose


def view_of(tensor: Tensor) -> memoryview:
    """A tensor's bytes, in place where it lies contiguously in this host's memory."""
    flat = tensor.detach().to("cpu").contiguous().view(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def as_bytes(payload: Tensor | memoryview | bytes) -> memoryview:
    """The bytes of a payload, in place where it lies contiguously in this host's memory.

    Raises ValueError where there are more than a message may carry.
    """
    if isinstance(payload, Tensor):
        whole = payload.detach().to("cpu").contiguous()
        flat = whole.as_strided((whole.numel(),), (1,))  # one number may have any stride
        view = flat.view(torch.uint8).numpy().data
    else:
        view = memoryview(payload).cast("B")
    if view.nbytes > LONGEST_PAYLOAD:
        raise ValueError(f"a payload of {view.nbytes} bytes is longer than {LONGEST_PAYLOAD}")
    return view


def as_tensor(payload: memoryview | None, dtype: torch.dtype, elements: int) -> Tensor:
    """The `elements` numbers of a payload, shape (elements,). Shares the payload's memory.

    Raises Malformed, before any memory is taken, where its length is another one.
    """
    length = 0 if payload is None else payload.nbytes
    if elements < 0 or length != elements * dtype.itemsize:
        raise Malformed(f"{length} bytes where {elements} numbers of {dtype} should be")
    if payload is None or not elements:
        return torch.empty(0, dtype=dtype)
    raw = torch.frombuffer(payload, dtype=torch.uint8)
    if raw.data_ptr() % dtype.itemsize:  # a short message lies wherever the transport read it
        raw = raw.clone()
    return raw.view(dtype)
