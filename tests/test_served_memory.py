"""What a server needs in memory: parameters, what the optimizer keeps, and a buffer a worker."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import served
import torch
from served import Crew

import shoal
from shoal.exchange import layout
from shoal.strategy.presets import async_ps, sync_ps

LAYERS, WIDTH = 32, 512
BYTES = 4 * LAYERS * WIDTH * WIDTH
QUEUED = 6 * 4 * layout.BUCKET
"""Messages that the transport holds of a worker that sends faster than it is read."""
DATA = [(torch.full((WIDTH,), 0.1 * (number % 7)), number % WIDTH) for number in range(64)]


def private(pid: int) -> int:
    """Bytes of a process's memory that are its own."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_"))


def train(strategy, address: str, steps: int) -> bool:
    layers = (torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with shoal.join_served(model, optimizer, strategy=strategy, server=address) as worker:
        for inputs, targets in worker.batches(DATA, global_batch=8, micro_batch=4, steps=steps):
            total = torch.nn.functional.cross_entropy(model(inputs), targets, reduction="sum")
            worker.backward(total, len(targets))
            worker.step()
        return worker.finished


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy, buffers",
    [(sync_ps(), 1), (async_ps(warm_up=0), 2)],  # of what waits for a commit, and what comes
    ids=["sync_ps", "async_ps"],
)
def test_a_server_holds_parameters_optimizer_state_and_buffers_for_each_worker(strategy, buffers):
    with served.serving(strategy) as run, Crew() as crew:
        address = run.address
        before = private(run.children[0])
        for _ in range(2):
            crew.start(lambda: train(strategy, address, 24))
        most = 0
        while crew.running:
            crew.look()
            most = max(most, private(run.children[0]) - before)
            time.sleep(0.02)
        run.ends_well()
    parameters, moments, mean, receiving = BYTES, 2 * BYTES, BYTES, 2 * buffers * BYTES
    transport = 2 * (BYTES + QUEUED)  # what a worker pulls is copied, and what it sends waits
    assert most < 1.1 * (parameters + moments + mean + receiving) + transport, most / BYTES
