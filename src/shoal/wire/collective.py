"""The wire over torch.distributed: Gloo between processors, NCCL between CUDA devices.

Both moves are point-to-point messages straight from and into the flat buffers. Gloo's own
collectives were measured first: `reduce_scatter` moves an all-reduce's bytes on every rank,
`all_to_all_single` and `all_gather_into_tensor` ran at 0.4 to 0.9 of this (`docs/log.md`).
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from shoal.errors import ShoalError
from shoal.wire.base import Future, Range, count_gather, count_publish, count_scatter
from shoal.wire.ledger import Ledger, Purpose
from shoal.world.world import World


class _Messages:
    """Messages under way. Gloo does not tell whether one has arrived without blocking for it."""

    def __init__(self, wire: CollectiveWire, works: list[dist.Work], result: Any) -> None:
        self._wire, self._works, self._result = wire, works, result

    def ready(self) -> bool:
        return not self._works

    def wait(self) -> Any:
        self._wire.finish(self._works)
        self._works = []
        return self._result() if callable(self._result) else self._result


class CollectiveWire:
    """Wire over a torch.distributed process group, which it makes unless there is one already."""

    window = 4  # the best of 2, 4 and 16 in `docs/log.md`

    def __init__(
        self, world: World, ledger: Ledger, *, device: torch.device, timeout: float
    ) -> None:
        self.rank, self.size = world.rank, world.size
        self._world, self._ledger, self._device = world, ledger, device
        self._turn = 0
        self._inboxes: dict[tuple[int, int, int, torch.dtype], Tensor] = {}
        self._owns_group = not dist.is_initialized()
        if self._owns_group:
            try:
                dist.init_process_group(
                    "nccl" if device.type == "cuda" else "gloo",
                    store=dist.PrefixStore("collective", world.store),
                    rank=world.rank,
                    world_size=world.size,
                    timeout=datetime.timedelta(seconds=timeout),
                )
            except (RuntimeError, ValueError) as error:
                raise ShoalError(f"the collective wire cannot start: {error}") from error

    def allocate(self, elements: int, dtype: torch.dtype) -> Tensor:
        """See `Wire.allocate`."""
        return torch.zeros(elements, dtype=dtype, device=self._device)

    def gather(self, row: Tensor) -> Future[list[Tensor]]:
        """See `Wire.gather`."""
        count_gather(self._ledger, self.size, row)
        mine = row.to(self._device)
        rows = [mine if w == self.rank else torch.empty_like(mine) for w in range(self.size)]
        peers = [worker for worker in range(self.size) if worker != self.rank]
        messages = [dist.P2POp(dist.irecv, rows[worker], worker) for worker in peers]
        messages += [dist.P2POp(dist.isend, mine, worker) for worker in peers]
        return _Messages(self, self._send(messages), lambda: [r.cpu() for r in rows])

    def scatter(
        self, slots: Sequence[Tensor], held: Sequence[int], pieces: Sequence[Range]
    ) -> Future[list[list[Tensor]]]:
        """See `Wire.scatter`. What arrives lies in memory of its own until it is summed."""
        count_scatter(self._ledger, self.rank, held, pieces, slots[0].element_size())
        start, stop = pieces[self.rank]
        self._turn = (self._turn + 1) % (self.window + 2)
        parts: list[list[Tensor]] = []
        messages: list[dist.P2POp] = []
        for worker in range(self.size):
            if worker == self.rank:
                parts.append([slot[start:stop] for slot in slots[: held[worker]]])
                continue
            arriving = [
                self._inbox(worker, slot, stop - start, like=slots[0])
                for slot in range(held[worker])
            ]
            parts.append(arriving)
            messages += [dist.P2POp(dist.irecv, part, worker) for part in arriving]
            theirs = slice(*pieces[worker])
            messages += [
                dist.P2POp(dist.isend, slot[theirs], worker) for slot in slots[: held[self.rank]]
            ]
        return _Messages(self, self._send(messages), parts)

    def publish(self, buffer: Tensor, pieces: Sequence[Range], purpose: Purpose) -> Future[None]:
        """See `Wire.publish`."""
        count_publish(self._ledger, self.rank, pieces, buffer.element_size(), purpose)
        mine = buffer[slice(*pieces[self.rank])]
        messages: list[dist.P2POp] = []
        for worker, piece in enumerate(pieces):
            if worker != self.rank:
                messages.append(dist.P2POp(dist.irecv, buffer[slice(*piece)], worker))
                messages.append(dist.P2POp(dist.isend, mine, worker))
        return _Messages(self, self._send(messages), None)

    def close(self) -> None:
        """End the process group, if this wire made it."""
        if self._owns_group and dist.is_initialized():
            dist.destroy_process_group()

    def finish(self, works: Sequence[dist.Work]) -> None:
        """Wait for messages. Raises PeerLost naming the worker that is gone, where it is known."""
        with self._ledger.spend("waiting"):
            try:
                for work in works:
                    work.wait()
            except RuntimeError as error:
                raise self._world.blame(error) from error

    def _inbox(self, worker: int, slot: int, elements: int, *, like: Tensor) -> Tensor:
        """Memory for what arrives, used again once its bucket is finished: fresh pages cost
        more than the bytes that come to lie in them. At most `window` + 1 buckets are open.
        """
        key = (self._turn, worker, slot, like.dtype)
        if key not in self._inboxes or len(self._inboxes[key]) < elements:
            self._inboxes[key] = like.new_empty(elements)
        return self._inboxes[key][:elements]

    def _send(self, messages: Sequence[dist.P2POp]) -> list[dist.Work]:
        """Start messages. An empty piece sends nothing, and both sides know that it is empty.

        Messages between two workers match in the order of sending, which is the same on both.
        """
        messages = [message for message in messages if message.tensor.numel()]
        if not messages:
            return []
        if self._device.type == "cuda":
            return list(dist.batch_isend_irecv(list(messages)))
        return [self._start(message.op, message.tensor, message.peer) for message in messages]

    def _start(self, operation: Callable[..., Any], *arguments: Any) -> dist.Work:
        extra = {"async_op": True} if operation is dist.all_gather else {}
        try:
            work: dist.Work = operation(*arguments, **extra)
        except RuntimeError as error:
            raise self._world.blame(error) from error
        return work
