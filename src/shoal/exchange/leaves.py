"""A worker's leaves on their way into flat buffers.

Backward adds a leaf's gradient into a slot (a flat buffer), and finished subtrees of the
canonical tree are added as it goes, bucket by bucket. What happens to a bucket once the
last leaf has filled it is the exchange's affair.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from shoal.exchange.layout import Layout
from shoal.exchange.tree import Accumulation
from shoal.wire.ledger import Ledger


class Leaves:
    """Slots, and the hooks that tell when a bucket of them is complete."""

    def __init__(
        self,
        layout: Layout,
        parameters: Sequence[nn.Parameter],
        ledger: Ledger,
        *,
        allocate: Callable[[], Tensor],
        filled: Callable[[int], None],
    ) -> None:
        """`parameters` are in the layout's order; `allocate` makes a flat buffer of its length.

        `filled` is called with each bucket, in order, once this worker's last leaf is in it.
        """
        self.slots: list[Tensor] = []
        self._layout, self._parameters, self._ledger = layout, parameters, ledger
        self._allocate, self._filled = allocate, filled
        self._views: list[list[Tensor]] = []
        self._plan: deque[Accumulation] = deque()
        self._arriving = self._parameters_by_bucket()
        self._waiting_for: list[int] = []
        self._seen: set[int] = set()
        self._fresh: list[Tensor] | None = None
        self._launched = 0
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._filled_by(index))
            for index, parameter in enumerate(parameters)
        ]

    @property
    def left(self) -> int:
        """Leaves of this step that are still to come."""
        return len(self._plan)

    def begin(self, plan: Sequence[Accumulation]) -> None:
        """Prepare for a step's leaves."""
        self._plan = deque(plan)

    def reserve(self, slots: int) -> None:
        """Have at least so many flat buffers."""
        while len(self.slots) < slots:
            self.slots.append(self._allocate())
            self._views.append(self._layout.views(self.slots[-1]))

    def add(self, total: Tensor) -> None:
        """Run backward of one leaf's loss sum into its slot."""
        step = self._plan[0]
        # A fresh slot is filled by copying: zeroing it would pass over the memory twice more.
        self._fresh = self._views[step.slot] if step.fresh else None
        for parameter, view in zip(self._parameters, self._views[step.slot], strict=True):
            parameter.grad = None if step.fresh else view
        self._waiting_for = [len(parameters) for parameters in self._arriving]
        self._seen.clear()
        self._launched = 0
        total.backward()
        if self._fresh is not None:  # parameters that took no part have a gradient of zero
            for index in set(range(len(self._parameters))) - self._seen:
                self._fresh[index].zero_()
        self._launch(up_to=len(self._layout.buckets))
        self._plan.popleft()

    def hand_over(self) -> None:
        """Let every parameter's `grad` be its view of the first slot."""
        for parameter, view in zip(self._parameters, self._views[0], strict=True):
            parameter.grad = view

    def close(self) -> None:
        """Leave the parameters' backward alone."""
        for hook in self._hooks:
            hook.remove()

    def _parameters_by_bucket(self) -> list[list[int]]:
        return [
            [
                index
                for index, place in enumerate(self._layout.places)
                if place.range.start < bucket.stop and bucket.start < place.range.stop
            ]
            for bucket in self._layout.buckets
        ]

    def _filled_by(self, index: int) -> Callable[[Tensor], None]:
        buckets = [b for b, indices in enumerate(self._arriving) if index in indices]

        def filled(parameter: Tensor) -> None:
            if not self._plan:
                return  # a backward outside the run, or in another phase of it
            if index in self._seen:
                raise ValueError(
                    f"parameter {self._layout.places[index].name!r} got its gradient twice in one "
                    "backward: call torch.utils.checkpoint with use_reentrant=False"
                )
            self._seen.add(index)
            if self._fresh is not None:
                assert parameter.grad is not None
                parameter.grad = self._fresh[index].copy_(parameter.grad)
            for bucket in buckets:
                self._waiting_for[bucket] -= 1
            complete = self._launched
            while complete < len(self._waiting_for) and self._waiting_for[complete] == 0:
                complete += 1
            self._launch(up_to=complete)

        return filled

    def _launch(self, up_to: int) -> None:
        """Merge the buckets that are complete, and after the last leaf say so, in order."""
        if self._launched >= up_to:
            return
        with self._ledger.spend("exchanging"):
            for bucket in range(self._launched, up_to):
                start, stop = self._layout.buckets[bucket]
                for target, source in self._plan[0].merges:
                    self.slots[target][start:stop].add_(self.slots[source][start:stop])
                if len(self._plan) == 1:
                    self._filled(bucket)
            self._launched = up_to
