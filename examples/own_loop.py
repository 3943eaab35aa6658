"""Your own training loop on any number of workers, in three calls.

    python examples/own_loop.py
    torchrun --nproc-per-node 3 examples/own_loop.py

Both print the same SHA-256: which worker computes a sample does not touch a bit of the result.
"""

import torch
from torch import nn

import shoal

STEPS = 50


def main() -> None:
    """Fit a small network to a sum of sines."""
    torch.set_num_threads(1)  # the number of threads can touch the last bits
    torch.manual_seed(0)
    x = torch.linspace(-3, 3, 1000).unsqueeze(1)
    samples = list(zip(x, torch.sin(2 * x) + torch.sin(5 * x), strict=True))
    model = nn.Sequential(
        nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    with shoal.join(model, optimizer, strategy=shoal.zero1(), clip=1.0) as worker:
        for inputs, targets in worker.batches(samples, global_batch=96, micro_batch=8, steps=STEPS):
            squares = (model(inputs) - targets).square()
            worker.backward(squares.sum(), count=squares.numel())  # a sum and a count, never a mean
            step = worker.step()  # None until the last leaf of a step
            if step and worker.rank == 0 and step.number % 10 == 0:
                print(f"step {step.number}  loss {step.loss:.4f}  norm {step.gradient_norm:.3f}")
        if worker.rank == 0:
            print(f"{worker.size} workers, weights {worker.weights_hash()[:16]}")


if __name__ == "__main__":
    main()
