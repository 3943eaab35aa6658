"""Memory: what a sharded optimizer saves, and whether `--dry-run` keeps its promise.

First the bytes of optimizer state on each worker under zero1, over those under ddp; the goal
is 1/p within 2 %. Then real runs of `shoal train`: the kernel's high-water mark (VmHWM) of
the fullest worker, over what `shoal train --dry-run` promised; the goal is 1 within 10 %.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measure import arguments, table, write

from shoal.models.config import ModelConfig
from shoal.models.decoder import Decoder
from shoal.strategy.join import join
from shoal.strategy.presets import ddp, zero1
from shoal.train.optimizer import OptimizerConfig, build_optimizer
from shoal.world.fork import fork_workers

VOCABULARY = 4096
DEPTHS = {"default": 4, "12.2 M": 6}
RUNS = [
    (name, strategy, wire)
    for name in DEPTHS
    for strategy in ("ddp", "zero1")
    for wire in ("shared_memory", "collective")
] + [
    ("12.2 M", name, "shared_memory")
    for name in ("ddp+int4", "diloco", "streaming_diloco", "sparse_loco")
]
QUICK = [("default", "ddp", "shared_memory")]
STEPS = 6


def main() -> None:
    """Both comparisons."""
    args = arguments(__doc__)
    torch.set_num_threads(1)
    sharded = [_optimizer_state(workers) for workers in (2, 3, 4)]
    table(
        ["optimizer state", "ddp MB", "zero1 MB, worst", "ratio x p", "goal"],
        [
            [
                f"{row['workers']} workers",
                row["ddp"] / 1e6,
                max(row["zero1"]) / 1e6,
                f"{row['ratio'] * row['workers']:.4f}",
                "0.98-1.02",
            ]
            for row in sharded
        ],
    )
    print()
    peaks = [_peak(*run) for run in (QUICK if args.quick else RUNS)]
    table(
        ["2 workers of shoal train", "promised MB", "peak MB", "peak / promised", "goal"],
        [
            [
                f"{row['model']}, {row['strategy']}, {row['wire']}",
                row["promised"] / 1e6,
                max(row["peak"]) / 1e6,
                f"{row['ratio']:.3f}",
                "0.9-1.1",
            ]
            for row in peaks
        ],
    )
    write("memory", args, {"optimizer_state": sharded, "peak": peaks})


def _optimizer_state(workers: int) -> dict[str, Any]:
    """Bytes after one step, by worker."""
    everyone = fork_workers(1, lambda: _state_bytes("ddp"))[0]
    owners = fork_workers(workers, lambda: _state_bytes("zero1"))
    return {"workers": workers, "ddp": everyone, "zero1": owners, "ratio": max(owners) / everyone}


def _state_bytes(strategy: str) -> int:
    torch.manual_seed(0)
    model = Decoder(ModelConfig(depth=DEPTHS["12.2 M"]), VOCABULARY)
    optimizer = build_optimizer(model, OptimizerConfig())
    with join(model, optimizer, strategy={"ddp": ddp, "zero1": zero1}[strategy]()) as worker:
        samples = torch.randint(0, VOCABULARY, (4, 9))
        for batch in worker.batches(samples, global_batch=4, steps=1):
            logits = model(batch[:, :-1]).flatten(0, 1)
            total = torch.nn.functional.cross_entropy(
                logits, batch[:, 1:].flatten(), reduction="sum"
            )
            worker.backward(total, 8)
            worker.step()
        return sum(
            value.numel() * value.element_size()
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        )


def _peak(name: str, strategy: str, wire: str) -> dict[str, Any]:
    """The promise and the high-water mark of one run."""
    command = [
        sys.executable,
        "-m",
        "shoal",
        "train",
        "--workers",
        "2",
        "--steps",
        str(STEPS),
        "--strategy",
        strategy,
        "--wire",
        wire,
        "--set",
        f"model.depth={DEPTHS[name]}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        told = subprocess.run(
            [*command, "--dry-run"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout
        match = re.search(r"^# memory\s+([\d,]+) MB at the peak", told, re.MULTILINE)
        assert match is not None, told
        promised = int(match[1].replace(",", "")) * 10**6
        peaks = _watch(command, folder)
    return {
        "model": name,
        "strategy": strategy,
        "wire": wire,
        "promised": promised,
        "peak": peaks,
        "ratio": max(peaks) / promised,
        "told": told.splitlines()[-1],
    }


def _watch(command: list[str], folder: str) -> list[int]:
    """Run a command; the high-water marks of the processes that it starts, which may have ended."""
    peaks: dict[int, int] = {}
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None:
        for child in _children(process.pid):
            mark = _high_water(child)
            if mark is not None:
                peaks[child] = mark
        time.sleep(0.01)
    assert process.returncode == 0, process.stderr and process.stderr.read()
    return sorted(peaks.values())[-2:]


def _children(process: int) -> list[int]:
    try:
        return [
            int(n) for n in Path(f"/proc/{process}/task/{process}/children").read_text().split()
        ]
    except OSError:
        return []


def _high_water(process: int) -> int | None:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else None


if __name__ == "__main__":
    if sys.platform != "linux":
        sys.exit("this benchmark reads /proc, which only Linux has")
    os.environ.setdefault("COLUMNS", "100")
    main()
