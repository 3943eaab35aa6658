"""Golden trajectories: what each preset's losses and bytes were. Write anew: python tests/golden.py

A change of these files says that a strategy now trains differently, and must say why.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from local import Local, trained
from served import serving, train, work
from training import Case

from shoal.strategy.compat import refusal
from shoal.strategy.options import LocalConfig, build_strategy
from shoal.strategy.parts import Delta, Servers, SharedMemory, Strategy
from shoal.strategy.presets import PRESETS, named

FOLDER = Path(__file__).parent / "golden"
CASE = Case(net="large", optimizer="foreach", samples=48, global_batch=48, micro_batch=8, steps=16)
WORKERS = 3
BUILT = [name for name in PRESETS if refusal(named(name)) is None]


def trajectory(name: str) -> dict[str, list[float]]:
    """Losses of worker 0's steps, agreed losses, and bytes sent by step."""
    local = LocalConfig()
    if isinstance(named(name).payload, Delta):
        local = LocalConfig(inner_steps=6)
        if named(name).payload.fragments > 1:
            local = replace(local, delay=1)
    strategy = build_strategy(name, local)
    if isinstance(strategy.owner, Servers):
        return served_trajectory(strategy)
    # Without a barrier only one worker does the same every time.
    workers = 1 if isinstance(strategy.owner, SharedMemory) else WORKERS
    found = trained(workers, Local(strategy=strategy, case=CASE))[0]
    return {
        "loss": [step[2] for step in found["steps"]],
        "agreed": [loss for loss in found["agreed"] if loss is not None],
        "sent": found["sent"],
    }


def served_trajectory(strategy: Strategy) -> dict[str, list[float]]:
    """The same of two servers and one worker: losses by commit; bytes are the messages' affair."""
    with serving(strategy, servers=2) as run:
        address = run.address
        work([lambda: train(CASE, strategy, address)])
        losses = [commit["loss"] for commit in run.lines("commit")]
        return {"loss": losses, "agreed": [], "sent": []}


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for preset in BUILT:
        told = {key: [round(v, 7) for v in values] for key, values in trajectory(preset).items()}
        (FOLDER / f"{preset}.json").write_text(json.dumps(told) + "\n")
        print(preset, told["loss"][0], "->", told["loss"][-1])
