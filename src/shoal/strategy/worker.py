"""The worker: a user's own training loop in three calls.

worker = shoal.join(model, optimizer, strategy=shoal.ddp())
for batch in worker.batches(samples, global_batch=64, micro_batch=8):
    total, count = loss_of(model, batch)        # a sum over targets, and how many
    worker.backward(total, count)
    worker.step()
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shoal.data.loader import prefetch
from shoal.errors import ShoalError
from shoal.exchange.exchange import Exchange, NonFiniteGradient
from shoal.exchange.layout import Layout, lay_out
from shoal.strategy.compat import require_legal
from shoal.strategy.parts import Strategy
from shoal.strategy.presets import ddp
from shoal.strategy.schedule import Leaf, Plan
from shoal.strategy.shards import narrow, whole
from shoal.wire.base import Range
from shoal.wire.ledger import Ledger
from shoal.wire.open import open_wire
from shoal.world.join import join_world
from shoal.world.world import World


@dataclass(frozen=True, kw_only=True)
class Step:
    """A finished step, the same on every worker but for the times and bytes, which are its own."""

    number: int
    """Steps finished, this one included."""
    position: int
    """Samples consumed, this step's included."""
    loss: float
    """Mean loss per target over the global batch."""
    count: int
    """Targets in the global batch."""
    gradient_norm: float
    stop: bool
    """Whether a worker asked everybody to stop here (see `Worker.ask_to_stop`)."""
    seconds: float
    ledger: Ledger


def join(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    strategy: Strategy | None = None,
    seed: int = 0,
    clip: float | None = None,
    wire: str = "auto",
    timeout: float = 300.0,
    world: World | None = None,
) -> Worker:
    """Join the run that the environment names (torchrun, Slurm, `shoal train`), or run alone.

    `model` and `optimizer` are any module and any torch optimizer over its parameters; worker
    0's weights are everybody's. `clip` bounds the norm of the mean gradient. `seed` decides
    the order of the samples and every random state. `timeout` is in seconds.

    Raises ShoalError when the parts do not go together or the workers cannot meet.
    """
    strategy = strategy or ddp()
    require_legal(strategy)
    return Worker(model, optimizer, strategy=strategy, seed=seed, clip=clip, wire=wire,
                  timeout=timeout, world=world or join_world())  # fmt: skip


class Worker:
    """One of the workers that train one model. Made by `join`."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        strategy: Strategy,
        seed: int,
        clip: float | None,
        wire: str,
        timeout: float,
        world: World,
    ) -> None:
        self.model, self.optimizer, self.strategy = model, optimizer, strategy
        self.world, self.seed, self.clip = world, seed, clip
        self.rank, self.size = world.rank, world.size
        self.position = 0
        self.steps = 0
        self.ledger = Ledger()
        self._refuse_running_statistics()
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.layout: Layout = lay_out(named, self.size)
        self._parameters = [parameter for _, parameter in reversed(named)]
        self._device = self._parameters[0].device
        self.wire = open_wire(wire, world, self.ledger, device=self._device, timeout=timeout)
        self._weights = self._gather_weights()
        if strategy.update == "owner":
            self.slices = narrow(optimizer, self.layout, self._parameters, self._weights, self.rank)
        else:
            self.slices = whole(self.layout, self._parameters)
        self._exchange = Exchange(
            self.layout, self._parameters, self.wire, self.ledger, strategy.update
        )
        self._share_what_does_not_train()
        self.leaf_observers: list[Callable[[Leaf], None]] = []
        """Called with each leaf that counts, before its batch is handed out."""
        self._leaf: Leaf | None = None
        self._stop = False
        self._began = time.perf_counter()

    def batches(
        self,
        samples: Any,
        *,
        global_batch: int,
        micro_batch: int = 1,
        epochs: float | None = None,
        steps: int | None = None,
        end: int | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> Iterator[Any]:
        """This worker's leaves of every step, as batches of `micro_batch` samples.

        `samples` has a length and gives a sample by number; `collate` makes a batch of a list
        of samples (torch's default_collate unless given). The run ends after `steps` steps,
        `epochs` passes (one, unless another length is given) or at position `end`; its last
        step, and the last leaf of a step, may be smaller. It goes on from `position`. A worker
        that has no leaf in such a last step still gets a batch, whose backward counts for
        nothing, so that every worker's loop turns at every step.

        torch's, numpy's and Python's random states are seeded by (seed, step, leaf) before
        each batch is handed out; `samples` must not draw from them.
        """
        plan = Plan(
            seed=self.seed,
            length=len(samples),
            global_batch=global_batch,
            micro_batch=micro_batch,
            end=_end(len(samples), global_batch, epochs, steps) if end is None else end,
        )
        plan.require_leaves_for(self.size)
        collate = collate or torch.utils.data.default_collate
        mine = plan.leaves(self.position, rank=self.rank, size=self.size)
        batches = ((leaf, collate(_fetch(samples, leaf.indices))) for leaf in mine)
        with prefetch(batches) as ready:
            self.restart_clock()
            while True:
                with self.ledger.spend("data"):
                    item = next(ready, None)
                if item is None:
                    return
                self._leaf, batch = item
                self._open(self._leaf)
                yield _to(batch, self._device)

    def _open(self, leaf: Leaf) -> None:
        """Get ready for a leaf: its step's tree, its random state."""
        if leaf.opens_step:
            self._exchange.begin(leaf.leaves)
        if not leaf.ghost:
            for observe in self.leaf_observers:
                observe(leaf)
        seed_everything(self.seed, self.steps, leaf.number)

    def backward(self, total: Tensor, count: int) -> None:
        """Add a leaf: the sum of its loss over its targets, and how many targets that is.

        Finished parts are sent while backward is still running.
        """
        if self._leaf is None:
            raise ValueError("backward must follow a batch of worker.batches(...)")
        if not self._leaf.ghost:
            with self._naming_the_step():
                self._exchange.add_leaf(total, count, stop=self._stop)

    def step(self) -> Step | None:
        """Finish the step if this was the worker's last leaf of it; else do nothing, return None.

        All or nothing: an error leaves the weights as they were before the step.
        """
        if self._leaf is None:
            raise ValueError("step must follow a batch of worker.batches(...)")
        if not self._leaf.closes_step:
            return None
        with self._naming_the_step():
            reduced = self._exchange.finish(stop=self._stop)
        with self.ledger.spend("exchanging"):
            if self.clip is not None and reduced.norm > self.clip:
                self._exchange.scale(self.clip / reduced.norm)
        self._update()
        self.position, self._leaf = self._leaf.step_stop, None
        self.steps += 1
        now = time.perf_counter()
        seconds, self._began = now - self._began, now
        return Step(
            number=self.steps,
            position=self.position,
            loss=reduced.total / reduced.count,
            count=reduced.count,
            gradient_norm=reduced.norm,
            stop=reduced.stop,
            seconds=seconds,
            ledger=self.ledger.reset(),
        )

    def ask_to_stop(self) -> None:
        """Let every worker see `Step.stop` after one and the same step, a coming one."""
        self._stop = True

    def restart_clock(self) -> None:
        """Let the next step's times and bytes begin here, after an evaluation or a save."""
        self.ledger.reset()
        self._began = time.perf_counter()

    def weights_hash(self) -> str:
        """SHA-256 of all parameters, by name and value, in the model's own order."""
        digest = hashlib.sha256()
        for name, parameter in self.model.named_parameters():
            digest.update(name.encode())
            digest.update(parameter.detach().contiguous().cpu().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def close(self) -> None:
        """Leave the run."""
        self.wire.close()
        self.world.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self.world.fail(str(error) or type(error).__name__)
        self.close()

    def _update(self) -> None:
        """Step what this worker steps; under `update="owner"`, publish it."""
        if self.strategy.update == "everyone":
            self._exchange.hand_over()
            self.optimizer.step()
            return
        starts = {place.name: place.range.start for place in self.layout.places}
        for part in self.slices:
            first = starts[part.name]
            part.parameter.grad = self._exchange.gradient[first + part.start : first + part.stop]
        self.optimizer.step()
        with self.ledger.spend("exchanging"):
            moves = [
                self.wire.publish(self._weights, pieces, "parameters")
                for pieces in self.layout.pieces
            ]
            for move in moves:
                move.wait()

    def _gather_weights(self) -> Tensor:
        """Move the parameters into one flat buffer, with worker 0's values everywhere."""
        flat = self.wire.allocate(self.layout.elements, self._parameters[0].dtype)
        for parameter, view in zip(self._parameters, self.layout.views(flat), strict=True):
            view.copy_(parameter.detach())
            parameter.data = view
        self.wire.gather(torch.zeros(1, dtype=torch.float64)).wait()  # all have copied theirs
        nothing = Range(self.layout.elements, self.layout.elements)
        all_of_it = Range(0, self.layout.elements)
        pieces = [all_of_it] + [nothing] * (self.size - 1)
        self.wire.publish(flat, pieces, "parameters").wait()
        return flat

    def _share_what_does_not_train(self) -> None:
        """Frozen parameters and buffers must be equal on all workers; they are never exchanged."""
        digests = {
            name: hashlib.sha256(
                value.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().data
            ).hexdigest()
            for name, value in [
                *((n, p) for n, p in self.model.named_parameters() if not p.requires_grad),
                *self.model.named_buffers(),
            ]
        }
        for worker, theirs in enumerate(self.world.exchange("frozen", digests)):
            for name, digest in digests.items():
                if theirs.get(name) != digest:
                    raise ShoalError(
                        f"{name!r} does not train and differs between worker {self.rank} and "
                        f"worker {worker}: give every worker the same"
                    )

    def _refuse_running_statistics(self) -> None:
        for name, module in self.model.named_modules():
            if getattr(module, "track_running_stats", False):
                raise ShoalError(
                    f"{name!r} ({type(module).__name__}) keeps running statistics of the batches "
                    "that one worker happens to see; use GroupNorm or LayerNorm, or "
                    "track_running_stats=False"
                )

    def _naming_the_step(self) -> _NamingTheStep:
        return _NamingTheStep(self.steps + 1)


class _NamingTheStep:
    """Adds the step to the message of a contribution that was refused."""

    def __init__(self, step: int) -> None:
        self._step = step

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, NonFiniteGradient):
            raise NonFiniteGradient(
                f"{error} in step {self._step}; no worker has applied that step"
            ) from None


def seed_everything(seed: int, step: int, leaf: int) -> None:
    """Seed every random state by (seed, step, leaf), so that a leaf is the same on any worker."""
    digest = hashlib.blake2b(f"{seed}/{step}/{leaf}".encode(), digest_size=8).digest()
    value = int.from_bytes(digest, "little")
    torch.manual_seed(value >> 1)
    np.random.seed(value % 2**32)
    random.seed(value)


def _end(length: int, global_batch: int, epochs: float | None, steps: int | None) -> int:
    if epochs is not None and steps is not None:
        raise ValueError("give steps or epochs, not both")
    if steps is not None:
        return steps * global_batch
    return round((1 if epochs is None else epochs) * length)


def _fetch(samples: Any, indices: list[int]) -> list[Any]:
    if hasattr(samples, "__getitems__"):  # torch's own name for fetching several at once
        fetched: list[Any] = samples.__getitems__(indices)
        return fetched
    return [samples[index] for index in indices]


def _to(batch: Any, device: torch.device) -> Any:
    if device.type == "cpu":
        return batch
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: _to(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(_to(value, device) for value in batch)
    return batch
