"""On which device a worker computes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shoal.errors import ShoalError
from shoal.strategy.parts import SharedMemory
from shoal.train.config import RunConfig, strategy_of


def device_of(config: RunConfig, local_rank: int) -> torch.device:
    """`auto` is a CUDA device where there is one, else the processor; `cuda` must be there.

    Workers of a host take its devices in turn, so that more workers than devices share them.
    Weights that all workers write to lie in the host's memory, so `auto` computes there too.
    Raises ShoalError for `cuda` where there is none.
    """
    name = config.device
    if name == "auto" and isinstance(strategy_of(config).owner, SharedMemory):
        name = "cpu"
    # Asked through the driver's management library: other ways spoil CUDA for forks of this
    # process (`shoal verify`).
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    found = torch.cuda.is_available() if name in ("auto", "cuda") else False
    if name == "cuda" and not found:
        raise ShoalError("device is 'cuda', but torch finds no CUDA device here; use auto or cpu")
    if not found:
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


@contextmanager
def repeatable(config: RunConfig, device: torch.device) -> Iterator[None]:
    """Let every operation on a CUDA device give the same bits each time, as on the processor.

    Raises ShoalError naming an operation that cannot.
    """
    if device.type == "cuda" and config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    except RuntimeError as error:
        name, known, _ = str(error).partition(" does not have a deterministic implementation")
        if not known:
            raise
        raise ShoalError(
            f"{name} has no deterministic form on CUDA, so that the run could not be repeated to "
            "the bit; train on --set device=cpu, or without that promise with "
            "--set deterministic=false"
        ) from error
