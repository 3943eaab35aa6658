"""A worker of a run whose parameters live on servers.

It has the same three calls as any worker. What differs is who decides what it computes: the
coordinator lends it parts of the global order, one after another, and it begins each from the
servers' parameters of that moment.

    lease -> pull -> leaves (forward, backward) -> push, bucket by bucket, while backward runs

Of local steps, a lease is many small steps of its own optimizer, and what is pushed is how far
they have come.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shoal.data.batch import fetch, to_device
from shoal.data.order import Order
from shoal.errors import ShoalError
from shoal.exchange.leaves import Leaves
from shoal.exchange.tree import Span, accumulations, cover, fold, slots_needed
from shoal.strategy.admission import refuse_running_statistics
from shoal.strategy.parts import Delta, Strategy
from shoal.strategy.random_states import seed_everything
from shoal.strategy.schedule import Plan, end_of
from shoal.strategy.serving import protocol as p
from shoal.strategy.serving.describe_model import describe_model, options_of
from shoal.strategy.serving.link import Link, Lost, RunFailed
from shoal.strategy.serving.replica import Replica
from shoal.strategy.step import Step
from shoal.strategy.weights import weights_hash
from shoal.wire.keys import Key
from shoal.wire.ledger import Ledger


class _Leaf(NamedTuple):
    """A micro-batch of a lease."""

    number: int
    """Among the leaves whose gradients are added up together, from 0."""
    closes_step: bool
    """Whether the optimizer steps, or the contribution is whole, after it."""
    first: int
    stop: int
    """Samples [first, stop) of the order."""


class ServedWorker:
    """One of the workers that train one model on servers. Made by `join`."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        strategy: Strategy,
        seed: int,
        clip: float | None,
        address: str,
        key: Key | None,
        job: str,
        timeout: float,
        rank: int = -1,
        about: dict[str, str] | None = None,
    ) -> None:
        refuse_running_statistics(model)
        self.model, self.optimizer, self.strategy = model, optimizer, strategy
        self.seed, self.clip = seed, clip
        self.position = self.steps = 0
        self.ledger = Ledger()
        self.evaluator: Callable[[], dict[str, float]] | None = None
        """Measures the model on held-out samples, when the coordinator asks this worker to."""
        self.finished = False
        self._named = [(name, q) for name, q in model.named_parameters() if q.requires_grad]
        self._parameters = [parameter for _, parameter in reversed(self._named)]
        self._device = self._parameters[0].device
        self._described = describe_model(model, optimizer, clip)
        self._hello = p.Hello(rank=rank, strategy=strategy.name, about=about or {})
        self._link = Link(address, self.ledger, key=key, job=job, timeout=timeout)
        self._plan: p.Plan | None = None
        self._leaf: _Leaf | None = None
        self._lost = False
        self._rejoin()

    # The three calls

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
        """The leaves of the leases that this worker is given, until the run is over.

        Arguments as of `Worker.batches`; they must be equal on all workers. The servers know the
        position.

        Raises ShoalError where the servers refuse this worker, or the run has failed.
        """
        end = end_of(len(samples), global_batch, epochs, steps) if end is None else end
        Plan(seed=self.seed, length=len(samples), global_batch=global_batch,
             micro_batch=micro_batch, end=end)  # fmt: skip
        self._plan = p.Plan(seed=self.seed, length=len(samples), global_batch=global_batch,
                            micro_batch=micro_batch, end=end)  # fmt: skip
        order = Order(seed=self.seed, length=len(samples))
        collate = collate or torch.utils.data.default_collate
        self._lost = False
        self._begin()
        while (go := self._next()) is not None:
            for leaf in self._leaves_of(go):
                with self.ledger.spend("data"):
                    chosen = order.indices(leaf.first, leaf.stop).tolist()
                    batch = to_device(collate(fetch(samples, chosen)), self._device)
                self._open(leaf)
                yield batch
                if self._lost:
                    self._rejoin()
                    break

    def _next(self) -> p.Go | None:
        """The next lease, with the parameters to begin it from; None once the run is over."""
        while True:
            try:
                todo = self._link.wait()
                if isinstance(todo, p.Go):
                    self._take(todo)
                    return todo
                if isinstance(todo, p.Over):
                    self._end(todo)
                    return None
                self._measure(todo)
            except Lost as lost:
                if lost.over is not None:
                    self._end(lost.over)
                    return None
                self._rejoin()

    def backward(self, total: Tensor, count: int) -> None:
        """Add a leaf: the sum of its loss over its targets, and how many targets that is.

        Buckets are sent to the servers while the last leaf's backward is still running.
        """
        if self._leaf is None:
            raise ValueError("backward must follow a batch of worker.batches(...)")
        if self._lost:
            return
        self._said.append((float(total.detach()), count))
        try:
            self._leaves.add(total)
            self._link.beat()
        except Lost:
            self._lost = True

    def step(self) -> Step | None:
        """Finish the step, or the contribution, if this was its last leaf; else return None."""
        leaf, self._leaf = self._leaf, None
        if leaf is None:
            raise ValueError("step must follow a batch of worker.batches(...)")
        if not leaf.closes_step or self._lost:
            return None
        try:
            return self._close(leaf)
        except Lost:
            self._lost = True
            return None

    # Around them

    def leave(self) -> None:
        """Say goodbye: what this worker holds is lent to others at once."""
        if not self.finished:
            with suppress(Lost):
                self._link.tell(p.Leave(worker=self._link.worker, epoch=self._link.epoch))

    def beat(self) -> None:
        """A sign of life, for whatever takes long between two leaves."""
        self._link.beat()

    def ask_to_stop(self, reason: str = "interrupted") -> None:
        """Let the whole run stop, after what is being applied."""
        self._link.tell(p.Stop(worker=self._link.worker, epoch=self._link.epoch, reason=reason))

    @property
    def rank(self) -> int:
        """The number that the coordinator gave it."""
        return self._link.worker

    def weights_hash(self) -> str:
        """SHA-256 of all parameters, by name and value, in the model's own order."""
        return weights_hash(self.model)

    def close(self) -> None:
        """End the connections."""
        self._link.close()

    def __enter__(self) -> ServedWorker:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None and not isinstance(error, ShoalError):
            self.leave()
        self.close()

    # Joining

    def _connect(self) -> None:
        welcome = self._link.connect(self._hello, self._described)
        self.position = welcome.position
        if not hasattr(self, "replica"):
            self._lay_out(len(welcome.servers))
        elif welcome.initialise and max(self.replica.have) > 0:
            raise ShoalError("the servers have begun anew without a checkpoint, and what was "
                             "trained is lost; start the run again")  # fmt: skip
        self.replica.forget()
        self._leaf = None
        self._lost = False
        if welcome.initialise:
            self.replica.bring(self._link, self.model, self._described)

    def _rejoin(self) -> None:
        """Become a member again; servers that come and go meanwhile are waited for."""
        while True:
            with suppress(Lost):
                self._connect()
                if self._plan is not None:
                    self._begin()
                return

    def _begin(self) -> None:
        assert self._plan is not None
        link, self._starting = self._link, True
        link.tell(p.Begin(worker=link.worker, epoch=link.epoch, plan=self._plan))

    def _lay_out(self, servers: int) -> None:
        self.replica = Replica(self._named, self.strategy.codec, servers)
        self._leaves = Leaves(self.replica.layout, self._parameters, self.ledger,
                              allocate=self.replica.flat, filled=self._filled)  # fmt: skip
        self._base = self.replica.flat() if isinstance(self.strategy.payload, Delta) else None

    def _pull(self) -> None:
        with self.ledger.spend("exchanging"):
            self.replica.pull(self._link)

    # A lease

    def _take(self, go: p.Go) -> None:
        if self._starting:  # until now the servers were making ready
            self._restart_clock()
            self._starting = False
        self._go, self._began = go, time.perf_counter()
        self._pull()
        if go.local_batch and self._base is not None:
            if not self.optimizer.state:
                self.replica.pull_state(self._link, self.optimizer)
            self._base.copy_(self.replica.weights)
        self._total, self._count = 0.0, 0

    def _leaves_of(self, go: p.Go) -> Iterator[_Leaf]:
        """A lease's leaves, those of one local step together."""
        assert self._plan is not None
        lease, micro = go.lease, self._plan.micro_batch
        local = go.local_batch or lease.samples
        for first in range(lease.first, lease.last, local):
            stop = min(first + local, lease.last)
            starts = range(first, stop, micro)
            self._span = Span(lease.start, lease.stop) if lease.leaves else Span(0, len(starts))
            self._of = lease.leaves or len(starts)
            self._leaves.begin(accumulations(self._of, self._span))
            self._leaves.reserve(slots_needed(self._of, self._span))
            self._said: list[tuple[float, int]] = []
            for number, start in enumerate(starts):
                yield _Leaf(number, start == starts[-1], start, min(start + micro, stop))

    def _open(self, leaf: _Leaf) -> None:
        assert self._plan is not None
        self._leaf = leaf
        step, inside = divmod(leaf.first, self._plan.global_batch)
        self.steps, self.position = step, leaf.first
        seed_everything(self.seed, step, inside // self._plan.micro_batch)

    def _filled(self, bucket: int) -> None:
        """A bucket of the contribution is complete."""
        if self._go.local_batch == 0 and self.replica.coded is None:
            self.replica.push(self._link, self._go.lease.number, bucket, self._leaves.slots[0])

    def _close(self, leaf: _Leaf) -> Step | None:
        """The step is whole: send it, or take it and go on."""
        assert self._plan is not None
        count = sum(n for _, n in self._said)
        total = self._added_up()
        self._total, self._count = self._total + total, self._count + count
        norm = math.nan
        if self._go.local_batch:
            norm = self._step_alone(count)
        if leaf.stop == self._go.lease.last:
            self._send(total if not self._go.local_batch else self._total)
        self.position = leaf.stop
        seconds = time.perf_counter() - self._began
        return Step(number=self.steps + 1, position=self.position, count=count,
                    loss=total / count if count else math.nan,
                    seen=len(self._said) * self._plan.micro_batch / self._plan.global_batch,
                    gradient_norm=norm, stop=False, seconds=seconds, ledger=Ledger())  # fmt: skip

    def _added_up(self) -> float:
        """The loss sum, along the tree in a step, as one process would add it."""
        totals = {
            Span(self._span.start + i, self._span.start + i + 1): loss
            for i, (loss, _) in enumerate(self._said)
        }
        if self._span == Span(0, self._of):
            return fold(self._of, totals, lambda a, b: a + b)
        (node,) = cover(self._of, self._span)
        return _fold_node(node, totals)

    def _step_alone(self, count: int) -> float:
        """A local step with this worker's own gradient; its norm."""
        gradient = self._leaves.slots[0]
        if not count:
            return math.nan
        gradient.div_(count)
        norm = float(torch.linalg.vector_norm(gradient))
        if math.isfinite(norm):
            if self.clip is not None and norm > self.clip:
                gradient.mul_(self.clip / norm)
            self._leaves.hand_over()
            self.optimizer.step()
        return norm

    def _send(self, total: float) -> None:
        """The rest of the contribution, and that it is whole; a bad one without its numbers."""
        lease = self._go.lease
        contribution = self._leaves.slots[0]
        if self._go.local_batch:
            assert self._base is not None
            contribution = torch.sub(self._base, self.replica.weights)
        elif self.replica.coded is not None and self._count:
            contribution.div_(self._count)  # what is owed is owed as a mean
        finite = math.isfinite(total)
        if (self._go.local_batch or self.replica.coded is not None) and finite:
            finite = bool(contribution.isfinite().all())
            for bucket in range(len(self.replica.layout.buckets)) if finite else ():
                self.replica.push(self._link, lease.number, bucket, contribution)
        link, spent = self._link, {str(what): each for what, each in self.ledger.seconds.items()}
        spent["computing"] = time.perf_counter() - self._restarted - sum(spent.values())
        page = self._restart_clock()
        link.tell(p.Done(
            worker=link.worker, epoch=link.epoch, lease=lease.number,
            total=total if finite else math.nan, count=self._count,
            options=options_of(self.optimizer), seconds=time.perf_counter() - self._began,
            spent=spent,
            sent=sum(page.sent.values()), received=sum(page.received.values()),
        ))  # fmt: skip
        link.flush()

    def _measure(self, order: p.Measure) -> None:
        link = self._link
        self._pull()
        self.steps = order.version
        link.tell(p.Pulled(worker=link.worker, epoch=link.epoch))
        metrics = self.evaluator() if self.evaluator else {}
        self._restart_clock()
        link.tell(p.Measured(worker=link.worker, epoch=link.epoch, version=order.version,
                             metrics=metrics))  # fmt: skip

    def _restart_clock(self) -> Ledger:
        """Let the next contribution's times and bytes begin here; what was counted before."""
        self._restarted = time.perf_counter()
        return self.ledger.reset()

    def _end(self, over: p.Over) -> None:
        if over.failed:
            raise RunFailed(over.reason)
        if not over.finished:
            return
        self.finished = True
        try:
            self._pull()
        except Lost:
            raise ShoalError("the run is over; its servers ended before the last pull") from None
        with suppress(Lost):
            self._link.tell(p.Leave(worker=self._link.worker, epoch=self._link.epoch))


def _fold_node(node: Span, totals: dict[Span, float]) -> float:
    if node in totals:
        return totals[node]
    left, right = node.halves()
    return _fold_node(left, totals) + _fold_node(right, totals)
