"""The worker: a user's own training loop in three calls.

worker = shoal.join(model, optimizer, strategy=shoal.ddp())
for batch in worker.batches(samples, global_batch=64, micro_batch=8):
    total, count = loss_of(model, batch)        # a sum over targets, and how many
    worker.backward(total, count)
    worker.step()
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shoal.data.batch import fetch, to_device
from shoal.data.loader import prefetch
from shoal.errors import ShoalError
from shoal.exchange.coded import CodedMean
from shoal.exchange.coded_gradient import CodedExchange
from shoal.exchange.exchange import NonFiniteGradient, Reduced
from shoal.exchange.layout import lay_out
from shoal.exchange.tree import Parts, share
from shoal.strategy.admission import refuse_running_statistics, require_equal_constants
from shoal.strategy.parts import Gradient, Strategy
from shoal.strategy.phases import Stage, enter, phases_of, switches
from shoal.strategy.random_states import seed_everything
from shoal.strategy.rounds import Agreement, Ahead, Rounds
from shoal.strategy.schedule import Leaf, Plan, end_of
from shoal.strategy.shards import narrow, whole
from shoal.strategy.step import Step
from shoal.strategy.weights import gather_weights, weights_hash
from shoal.wire.ledger import Ledger
from shoal.wire.open import open_wire
from shoal.world.world import World


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
        parts: Parts = (),
    ) -> None:
        _require_parts(parts, strategy, world.size)
        self.parts = parts
        """How large a part of each step each worker takes; empty: equal parts."""
        self.model, self.optimizer, self.strategy = model, optimizer, strategy
        self.world, self.seed, self.clip = world, seed, clip
        self.rank, self.size = world.rank, world.size
        self.position = 0
        self.steps = 0
        self.ledger = Ledger()
        refuse_running_statistics(model)
        self._named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.layout = lay_out(self._named, self.size)
        self._parameters = [parameter for _, parameter in reversed(self._named)]
        self._device = self._parameters[0].device
        self.wire = open_wire(wire, world, self.ledger, device=self._device, timeout=timeout)
        self._weights = gather_weights(self.wire, self.layout, self._parameters)
        self._phases = phases_of(strategy)
        self.phases = len(self._phases)
        self._switches = [0] * self.phases
        self._end, self._global_batch = 0, 1
        self.phase = -1
        """Which of the strategy's phases this is."""
        self.enter(0)
        require_equal_constants(model, world)
        self.leaf_observers: list[Callable[[Leaf], None]] = []
        """Called with each leaf that counts, before its batch is handed out."""
        self._leaf: Leaf | None = None
        self._targets = 0
        self._spoilt = False
        self._stop = False
        self._began = time.perf_counter()

    @property
    def coded(self) -> CodedMean | None:
        """What crosses the wire coded in this phase, with what the codec remembers."""
        if self.rounds is not None:
            return self.rounds.mean
        exchange = self._stage.exchange
        return exchange.mean if isinstance(exchange, CodedExchange) else None

    @property
    def rounds(self) -> Rounds | None:
        """What is agreed on between local steps, in a phase that takes them."""
        return self._stage.rounds

    @property
    def sharded(self) -> bool:
        """Whether an owner holds the optimizer's state of its shard alone."""
        return self.strategy.update == "owner" and isinstance(self.strategy.payload, Gradient)

    @property
    def settled(self) -> bool:
        """Whether nothing is under way between workers, so that a checkpoint can be taken."""
        return self.rounds is None or self.rounds.flight is None

    def enter(self, phase: int) -> None:
        """Begin a phase of the strategy. Weights and optimizer go on as they are."""
        if phase == self.phase:
            return
        spare = []
        if self.phase >= 0:
            self._stage.exchange.leaves.close()
            spare = self._stage.exchange.leaves.slots
        self._stage: Stage = enter(
            self._phases[phase],
            self._named,
            self._weights,
            self.wire,
            self.ledger,
            spare,
            self.parts,
        )
        self.phase = phase
        if self.rounds is None:
            self.layout = self._stage.exchange.layout
        if phase == 0 and self.sharded:
            self.slices = narrow(
                self.optimizer, self.layout, self._parameters, self._weights, self.rank
            )
        elif phase == 0:
            self.slices = whole(self.layout, self._parameters)

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
            end=end_of(len(samples), global_batch, epochs, steps) if end is None else end,
            parts=self.parts,
        )
        plan.require_leaves_for(self.size)
        self._end, self._global_batch = plan.end, global_batch
        self._switches = switches(self._phases, plan.end, global_batch)
        collate = collate or torch.utils.data.default_collate
        mine = plan.leaves(self.position, rank=self.rank, size=self.size)
        batches = ((leaf, collate(fetch(samples, leaf.indices))) for leaf in mine)
        with prefetch(batches) as ready:
            self.restart_clock()
            while True:
                with self.ledger.spend("data"):
                    item = next(ready, None)
                if item is None:
                    return
                self._leaf, batch = item
                self._open(self._leaf)
                yield to_device(batch, self._device)

    def _open(self, leaf: Leaf) -> None:
        """Get ready for a leaf: its step's tree, its random state."""
        if leaf.opens_step:
            self.enter(sum(start <= self.position for start in self._switches[1:]))
            if self.rounds is not None and self.rounds.steps == 0:
                self.rounds.plan(math.inf, self._ahead(self.position))  # whose rate may still rise
            mine = share(leaf.leaves, self.size, self.rank)
            alone = self.rounds is not None
            self._stage.exchange.begin(mine.stop - mine.start if alone else leaf.leaves)
            self._targets, self._spoilt = 0, False
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
        if self._leaf.ghost or self._spoilt:
            return
        self._targets += count
        try:
            with self._naming():
                self._stage.exchange.add_leaf(total, count, stop=self._stop)
        except NonFiniteGradient as error:
            self._spoil(error)

    def step(self) -> Step | None:
        """Finish the step if this was the worker's last leaf of it; else do nothing, return None.

        All or nothing: an error leaves the weights as they were before the step.
        """
        if self._leaf is None:
            raise ValueError("step must follow a batch of worker.batches(...)")
        if not self._leaf.closes_step:
            return None
        leaf = self._leaf
        if self.rounds is None:
            reduced, seen, agreement = self._finish(self._stop), 1.0, Agreement()
        else:
            reduced, agreement = self._local_step(self.rounds, self._ahead(leaf.step_stop))
            mine = share(leaf.leaves, self.size, self.rank)
            seen = (mine.stop - mine.start) / leaf.leaves
        self.position, self._leaf = leaf.step_stop, None
        self.steps += 1
        now = time.perf_counter()
        seconds, self._began = now - self._began, now
        return Step(
            number=self.steps,
            position=self.position,
            loss=reduced.total / reduced.count if reduced.count else math.nan,
            count=reduced.count,
            seen=seen,
            gradient_norm=reduced.norm,
            stop=agreement.stop if self.rounds else reduced.stop,
            seconds=seconds,
            ledger=self.ledger.reset(),
            agreed_loss=agreement.loss,
            events=agreement.events,
        )

    def _finish(self, stop: bool) -> Reduced:
        """Complete the exchange of a step's gradients, clip, and update."""
        with self._naming():
            reduced = self._stage.exchange.finish(stop=stop)
        with self.ledger.spend("exchanging"):
            if self.clip is not None and reduced.norm > self.clip:
                self._stage.scale(self.clip / reduced.norm)
        self._update()
        return reduced

    def _local_step(self, rounds: Rounds, ahead: Ahead) -> tuple[Reduced, Agreement]:
        """Step alone, if there is something to learn from, and agree where it is time to."""
        reduced = Reduced(total=0.0, count=0, norm=0.0, stop=False)
        if self._targets and not self._spoilt:
            try:
                reduced = self._finish(False)
            except NonFiniteGradient as error:
                self._spoil(error)
        rate = float(self.optimizer.param_groups[0]["lr"])
        with self.ledger.spend("exchanging"):
            return reduced, rounds.after_step(
                reduced.total, reduced.count, rate=rate, ahead=ahead, stop=self._stop
            )

    def _ahead(self, position: int) -> Ahead:
        left = self._end - position
        return Ahead(steps=math.ceil(left / self._global_batch), done=position / self._end)

    def _spoil(self, error: NonFiniteGradient) -> None:
        """Begin again from what was last agreed on, without what led away from it.

        Raises the error where every step is agreed on.
        """
        if self.rounds is None:
            raise error
        self._spoilt = True
        self.rounds.spoil()
        self.optimizer.state.clear()

    def ask_to_stop(self) -> None:
        """Let every worker see `Step.stop` after one and the same step, a coming one."""
        self._stop = True

    def restart_clock(self) -> None:
        """Let the next step's times and bytes begin here, after an evaluation or a save."""
        self.ledger.reset()
        self._began = time.perf_counter()

    def weights_hash(self) -> str:
        """SHA-256 of all parameters, by name and value, in the model's own order."""
        return weights_hash(self.model)

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Inside, the model has the parameters that all workers agree on, not its own."""
        if self.rounds is None:
            yield
            return
        own = self._weights.clone()
        self._weights.copy_(self.rounds.replica)
        try:
            yield
        finally:
            self._weights.copy_(own)

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
        if not self.sharded:
            self._stage.exchange.leaves.hand_over()
            self.optimizer.step()
            return
        starts = {place.name: place.range.start for place in self.layout.places}
        for part in self.slices:
            first = starts[part.name]
            gradient = self._stage.exchange.gradient
            part.parameter.grad = gradient[first + part.start : first + part.stop]
        self.optimizer.step()
        with self.ledger.spend("exchanging"):
            moves = [
                self.wire.publish(self._weights, pieces, "parameters")
                for pieces in self.layout.pieces
            ]
            for move in moves:
                move.wait()

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Add the step to a refusal, and leave word for peers that lose this worker before they
        have found the same."""
        try:
            yield
        except NonFiniteGradient as error:
            step = self.steps + 1
            told = NonFiniteGradient(f"{error} in step {step}; no worker has applied that step")
            if self.rounds is None:
                self.world.fail(str(told))
            raise told from None


def _require_parts(parts: Parts, strategy: Strategy, size: int) -> None:
    """Refuse parts that no step can be dealt in."""
    if not parts:
        return
    if not strategy.exact:
        raise ShoalError(
            f"strategy {strategy.name!r} weighs all workers alike: unequal shares of a step "
            "belong to ddp and zero1, whose result does not depend on them"
        )
    if len(parts) != size or not all(math.isfinite(part) and part > 0 for part in parts):
        raise ShoalError(
            f"shares are {', '.join(f'{part:g}' for part in parts)}, but must be {size} positive "
            "numbers, one for each worker"
        )
