"""What optimizers keep (moments, counts of steps), in memory that all workers share.

    moments="shared"   one set that every update of every worker changes, without a lock
    moments="own"      one set a worker, which its own updates change; the others see it only
                       to save it

torch makes an optimizer's state in its first step. Which tensors that will be is found out by a
step of the same optimizer on tiny parameters; their values are those of torch's own first
step, which is taken in private memory and moved. With shared moments the others wait for
that one step.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shoal.errors import ShoalError
from shoal.strategy.claims import Claims, Common, Own
from shoal.strategy.parts import Moments
from shoal.strategy.shards import ELEMENTWISE
from shoal.wire.shared_memory import SharedMemoryWire

State = dict[nn.Parameter, dict[str, Tensor]]

_ALIGN = 256  # bytes
_SERVED = (*ELEMENTWISE, torch.optim.SparseAdam)


class _Kept(NamedTuple):
    """One tensor of a parameter's state."""

    parameter: nn.Parameter
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class SharedMoments:
    """An optimizer whose state lies in shared memory."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        moments: Moments,
        wire: SharedMemoryWire,
        claims: Claims,
        sparse: set[int],
    ) -> None:
        """`sparse`: ids of the parameters whose gradients have rows.

        Raises ShoalError for an optimizer that does not work element by element.
        """
        if type(optimizer) not in _SERVED:
            names = ", ".join(kind.__name__ for kind in _SERVED)
            raise ShoalError(
                f"{type(optimizer).__name__} cannot update a shared copy, which needs an "
                f"elementwise optimizer ({names}); use strategy ddp"
            )
        self._optimizer, self._claims = optimizer, claims
        self.shared = moments == "shared"
        kept = _rehearse(optimizer, sparse)
        sizes = [-(-_bytes(each) // _ALIGN) * _ALIGN for each in kept]
        rows = 1 if self.shared else wire.size
        self._rows: list[State] = [{} for _ in range(rows)]
        if kept:
            memory = wire.common(rows * sum(sizes))[0]
            pages = memory.split([size for _ in range(rows) for size in sizes])
            for number, page in enumerate(pages):
                row, each = self._rows[number // len(kept)], kept[number % len(kept)]
                tensor = page[: _bytes(each)].view(each.dtype).view(each.shape)
                row.setdefault(each.parameter, {})[each.key] = tensor
        self._mine = self._rows[0 if self.shared else wire.rank]
        self._installed = not kept

    def adopt(self) -> None:
        """Take over state that the optimizer has already: of a checkpoint, of its constructor.

        All call it, and must meet before the first update.
        """
        state = self._optimizer.state
        if self._installed or any(parameter not in state for parameter in self._mine):
            return
        if not self.shared or self._claims.rank == 0:
            self._move_in()
        self._install()
        self._claims.own[Own.MADE] = 1
        self._claims.common[Common.MADE] = 2

    def step(self) -> None:
        """Step the optimizer; the first step of all makes the state."""
        if self._installed:
            self._optimizer.step()
        elif self.shared and not self._is_first():
            self._claims.wait(lambda: bool(self._claims.common[Common.MADE] == 2))
            self._install()
            self._optimizer.step()
        else:
            self._optimizer.step()
            self._move_in()
            self._install()
            self._claims.own[Own.MADE] = 1
            if self.shared:
                self._claims.common[Common.MADE] = 2

    def rows(self) -> dict[int, State]:
        """The sets that have been made: of worker 0 if they are one, or by worker."""
        if self.shared:
            return {0: self._mine} if self._claims.common[Common.MADE] == 2 else {}
        made = self._claims.rows[:, Own.MADE]
        return {worker: row for worker, row in enumerate(self._rows) if made[worker]}

    def _is_first(self) -> bool:
        with self._claims.lock():
            first = bool(self._claims.common[Common.MADE] == 0)
            if first:
                self._claims.common[Common.MADE] = 1
        return first

    def _move_in(self) -> None:
        for parameter, tensors in self._mine.items():
            for key, tensor in tensors.items():
                value = self._optimizer.state[parameter][key]
                tensor.copy_(torch.as_tensor(value))

    def _install(self) -> None:
        for parameter, tensors in self._mine.items():
            self._optimizer.state[parameter] = dict(tensors)
        self._installed = True


def clone(state: State) -> State:
    """A private copy of a set."""
    return {p: {key: tensor.clone() for key, tensor in kept.items()} for p, kept in state.items()}


def _bytes(kept: _Kept) -> int:
    return torch.Size(kept.shape).numel() * kept.dtype.itemsize


def _rehearse(optimizer: torch.optim.Optimizer, sparse: set[int]) -> Sequence[_Kept]:
    """What an optimizer will keep of each of its parameters, by a step on tiny ones."""
    trial = copy.copy(optimizer)
    trial.state = defaultdict(dict)
    trial.param_groups = []
    tiny: dict[nn.Parameter, nn.Parameter] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            tiny[parameter] = small = _small(parameter, sparse)
            if kept := optimizer.state.get(parameter):
                trial.state[small] = {k: _shrunk(v, parameter, small) for k, v in kept.items()}
        members = [tiny[parameter] for parameter in group["params"]]
        trial.param_groups.append({**group, "params": members})
    trial.step()
    return [
        _kept(parameter, small, key, value)
        for parameter, small in tiny.items()
        for key, value in trial.state[small].items()
        if value is not None
    ]


def _small(parameter: nn.Parameter, sparse: set[int]) -> nn.Parameter:
    small = nn.Parameter(parameter.new_zeros((2,) * parameter.dim()))
    small.grad = torch.zeros_like(small)
    if id(parameter) in sparse:
        small.grad = torch.sparse_coo_tensor(
            torch.zeros(1, 1, dtype=torch.int64),
            torch.zeros_like(small[:1]).detach(),
            small.shape,
            check_invariants=False,
        ).coalesce()
    return small


def _shrunk(value: Any, parameter: nn.Parameter, small: nn.Parameter) -> Any:
    if isinstance(value, Tensor) and value.shape == parameter.shape:
        return value.new_zeros(small.shape)
    return copy.deepcopy(value)


def _kept(parameter: nn.Parameter, small: nn.Parameter, key: str, value: Any) -> _Kept:
    if not isinstance(value, Tensor):  # a count that torch keeps as a Python number
        return _Kept(parameter, key, (), torch.float64)
    if value.shape == small.shape:
        return _Kept(parameter, key, tuple(parameter.shape), value.dtype)
    assert value.dim() == 0, f"{key!r} is neither one number nor one an element"
    return _Kept(parameter, key, (), value.dtype)
