"""Where an optimizer's single numbers lie, such as the count of its steps."""

from __future__ import annotations

import torch
from torch import Tensor


def place_step_counts(optimizer: torch.optim.Optimizer) -> None:
    """Move what an optimizer keeps as one number to where its kernels read it.

    Fused and capturable ones want it on the parameter's device, and others on the host. torch
    sees to that in `load_state_dict`, and state that came another way needs it too.
    """
    for group in optimizer.param_groups:
        if group.get("fused") or group.get("capturable"):
            for parameter in group["params"]:
                state = optimizer.state.get(parameter, {})
                for key, value in state.items():
                    if isinstance(value, Tensor) and value.dim() == 0:
                        state[key] = value.to(parameter.device)
