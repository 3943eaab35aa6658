"""Hogwild!: workers of one host update one copy of the model, and nobody waits for anybody.

Niu, Recht, Re and Wright, "Hogwild!: a lock-free approach to parallelizing stochastic gradient
descent", NeurIPS 2011. With w workers, weights x and learning rate r, each worker repeats

    claim      the next share of a step's samples (global_batch / w of them) is its own
    compute    g = the sum of its leaves' gradients at the x it happens to read, over its targets
    update     x <- optimizer(x, g) in place, in memory that all read and write

so a step is w updates by whoever comes first, each by a gradient that may be some updates old.
A number that two workers write at once keeps one of the two: see `lost_updates.py`. With one
worker a claim is the whole step, and the run is that of `ddp`, bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shoal.data.batch import fetch
from shoal.data.order import Order
from shoal.errors import ShoalError
from shoal.exchange.coded import CodedMean
from shoal.exchange.exchange import NonFiniteGradient, Reduced
from shoal.strategy.claim_gradient import ClaimGradient, sparse_weights
from shoal.strategy.claims import Claim, Claims
from shoal.strategy.lost_updates import Losses, LostUpdates
from shoal.strategy.parts import SharedMemory, Strategy
from shoal.strategy.random_states import seed_everything
from shoal.strategy.rounds import Rounds
from shoal.strategy.schedule import Plan, end_of
from shoal.strategy.shards import whole
from shoal.strategy.shared_copy import SharedCopy
from shoal.strategy.shared_moments import SharedMoments, State, clone
from shoal.strategy.step import Step
from shoal.strategy.worker import Worker
from shoal.wire.shared_memory import SharedMemoryWire
from shoal.world.world import World

PATIENCE = 3
"""Claims of one worker that may be refused in a row; that many end the run."""


class HogwildWorker(Worker):
    """A worker that shares its weights with the others. Made by `join`.

    Each turn of its loop is its own: `Step.number` is the step that its claim belongs to, so
    a schedule and a budget mean what they mean elsewhere. All workers meet at the end of
    `batches`, and nowhere else.
    """

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
        _require_one_memory(model, wire, world)
        super().__init__(model, optimizer, strategy=strategy, seed=seed, clip=clip,
                         wire="shared_memory", timeout=timeout, world=world)  # fmt: skip
        assert isinstance(strategy.owner, SharedMemory)
        assert isinstance(self.wire, SharedMemoryWire)
        sparse = sparse_weights(model)
        self._claims = Claims(self.wire, world, self.ledger, timeout=timeout)
        self._copy = SharedCopy(self.wire, self.layout, self._parameters, self._weights)
        self._moments = SharedMoments(
            optimizer, strategy.owner.moments, self.wire, self._claims, sparse
        )
        self._lost = LostUpdates(self._claims, self.wire, self.layout.elements)
        self.pause_every = 0
        """Steps after which claims wait until somebody has entered `still`. 0: they never do."""
        self._claim: Claim | None = None
        self._refused = 0
        """Claims that were refused in a row."""
        self._events: list[str] = []

    @property
    def coded(self) -> CodedMean | None:
        """Nothing crosses a wire."""
        return None

    @property
    def rounds(self) -> Rounds | None:
        """There are none."""
        return None

    @property
    def pausing(self) -> bool:
        """Whether this worker's last claim was the last before a pause: the others wait for it
        to enter `still`."""
        claim, every = self._claim, self.pause_every
        at_pause = bool(every and claim and self.steps % every == 0 and self._claims.closes(claim))
        return at_pause and self.position < self._claims.end

    def enter(self, phase: int) -> None:
        """Set up the only phase."""
        if phase == self.phase:
            return
        self._gradient = ClaimGradient(self.model, self._named, self.ledger)
        self.slices = whole(self.layout, self._parameters)
        self.phase = phase

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
        """The leaves of this worker's claims, as batches of `micro_batch` samples.

        As `Worker.batches`, but which samples are whose is decided as the run goes. All workers
        call it alike, and it returns once all of them have finished every claim. The samples of
        a claim are fetched when it is made, and not ahead.
        """
        plan = Plan(
            seed=self.seed,
            length=len(samples),
            global_batch=global_batch,
            micro_batch=micro_batch,
            end=end_of(len(samples), global_batch, epochs, steps) if end is None else end,
        )
        plan.require_leaves_for(self.size)
        collate = collate or torch.utils.data.default_collate
        order = Order(seed=self.seed, length=len(samples))
        opened_at = self.steps
        self._open_claims(plan)
        while claim := self._claims.take(stop=self._stop):
            self._claim = claim
            self.steps = claim.step
            indices = order.indices(claim.start, claim.stop).tolist()
            for leaf in self._claims.leaves_of(claim, indices):
                with self.ledger.spend("data"):
                    batch = collate(fetch(samples, leaf.indices))
                if leaf.opens_step:
                    self._gradient.begin(-((claim.start - claim.stop) // micro_batch))
                    self._targets, self._spoilt = 0, False
                self._leaf = leaf
                for observe in self.leaf_observers:
                    observe(leaf)
                seed_everything(self.seed, self.steps, leaf.number)
                yield batch
        self._leaf, self._claim = None, None
        self.steps = opened_at - ((self._claims.origin - self._claims.end) // global_batch)
        self.position = self._claims.end

    def _open_claims(self, plan: Plan) -> None:
        """All begin together, from one position, with one optimizer state."""
        self._meet()
        self._claims.open(
            plan, position=self.position, steps=self.steps, pause_every=self.pause_every
        )
        self._moments.adopt()
        self._meet()
        self.restart_clock()

    def backward(self, total: Tensor, count: int) -> None:
        """Add a leaf: the sum of its loss over its targets, and how many targets that is."""
        if self._leaf is None:
            raise ValueError("backward must follow a batch of worker.batches(...)")
        self._targets += count
        if self._spoilt or (self._leaf.closes_step and not self._targets):
            return
        try:
            self._gradient.add_leaf(total, count)
        except NonFiniteGradient:
            self._spoilt = True

    def step(self) -> Step | None:
        """Update the shared copy if this was the claim's last leaf; else do nothing, return None.

        A claim whose loss or gradient is not finite is refused before it touches anything, and
        said in `Step.events`. Raises ShoalError when that happens three times in a row.
        """
        if self._leaf is None or self._claim is None:
            raise ValueError("step must follow a batch of worker.batches(...)")
        if not self._leaf.closes_step:
            return None
        claim = self._claim
        reduced = self._learn()
        self._claims.finish(claim, applied=reduced is not None)
        self.position, self.steps, self._leaf = claim.stop, claim.step + 1, None
        now = time.perf_counter()
        seconds, self._began = now - self._began, now
        return Step(
            number=self.steps,
            position=self.position,
            loss=reduced.total / reduced.count if reduced else math.nan,
            count=reduced.count if reduced else 0,
            seen=(claim.stop - claim.start) / self._claims.samples_of_step(claim),
            gradient_norm=reduced.norm if reduced else math.nan,
            stop=False,
            seconds=seconds,
            ledger=self.ledger.reset(),
            events=tuple((self.rank, text) for text in self._events),
        )

    def _learn(self) -> Reduced | None:
        """Finish the claim's gradient, clip it and apply it; None where it is refused."""
        self._events = []
        if not (self._targets or self._spoilt):
            self._events.append("a claim has no target to learn from, and was passed over")
            return None
        try:
            if self._spoilt:
                raise NonFiniteGradient("one of its leaves")
            reduced = self._gradient.finish()
        except NonFiniteGradient:
            self._refuse()
            return None
        self._refused = 0
        if self.clip is not None and reduced.norm > self.clip:
            self._gradient.scale(self.clip / reduced.norm)
        with self._lost.watching():
            self._moments.step()
        return reduced

    def _refuse(self) -> None:
        """Count a claim that is not finite, and say so."""
        self._refused += 1
        said = "contributed a NaN or an infinity"
        if self._refused == PATIENCE:
            raise ShoalError(
                f"worker {self.rank} {said} {PATIENCE} times in a row, the last time in step "
                f"{self.steps + 1}; nothing of it was applied"
            )
        self._events.append(f"{said}, which was refused")

    def losses(self) -> Losses:
        """Updates of all workers so far, and how many of them got lost."""
        return self._lost.count()

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Inside, the model is a private copy of the shared one, which the others go on with."""
        self._copy.step_aside()
        try:
            yield
        finally:
            self._copy.bind()

    @contextmanager
    def still(self) -> Iterator[dict[int, State]]:
        """Inside, the model is a private copy of the shared one at a pause, or at the end.

        Waits until the others have finished what they claimed, copies, and lets them go on. Gives
        copies of the optimizer states: worker 0's, which is everybody's, or each worker's.
        """
        self._claims.settle()
        states = {worker: clone(state) for worker, state in self._moments.rows().items()}
        with self.agreed():
            self._claims.go_on()
            yield states

    @property
    def shared_moments(self) -> bool:
        """Whether the workers share one optimizer state."""
        return self._moments.shared

    def _meet(self) -> None:
        self.wire.gather(torch.zeros(1, dtype=torch.float64)).wait()


def _require_one_memory(model: nn.Module, wire: str, world: World) -> None:
    parameter = next((p for p in model.parameters() if p.requires_grad), None)
    reason = None
    if parameter is not None and parameter.device.type != "cpu":
        reason = f"the model is on {parameter.device}; use device cpu"
    elif not world.one_host:
        reason = "the workers are on several hosts; use strategy ddp between hosts"
    elif wire == "collective":
        reason = "the collective wire copies what it carries; use --wire auto"
    if reason is not None:
        raise ShoalError(f"hogwild needs one memory that all workers write to, but {reason}")
