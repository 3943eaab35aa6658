"""The README's picture: one configuration at several numbers of workers, and a run's records.

python benchmarks/picture.py RUN        # writes docs/result.png
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from shoal.config import load
from shoal.recipes.catalogue import recipe
from shoal.train.certify import Variant, certify, first_difference
from shoal.train.config import RunConfig, resolve
from shoal.train.records import RecordsConfig, read_records

WORKERS = (1, 2, 3, 4)
SETTINGS = [
    "model.depth=1",
    "model.width=64",
    "data.sequence_length=64",
    "batch.global_batch=8",
    "batch.micro_batch=1",
    "budget.steps=60",
    "evaluation.samples=8",
    "workers=4",
    "optimizer.lr=1e-2",
]


def main() -> None:
    torch.set_num_threads(1)
    config = resolve(load(RunConfig, settings=[*SETTINGS, "records.tensorboard=false"]))
    assert config.records == RecordsConfig(tensorboard=False)
    variants = [Variant(wire="shared_memory", workers=count) for count in WORKERS]
    with tempfile.TemporaryDirectory() as scratch:
        outcomes = list(certify(config, recipe(config.recipe).build, variants, Path(scratch)))
    if any(first_difference(outcomes[0], outcome) for outcome in outcomes):
        raise SystemExit("the weights differ: no picture of equality")
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    for number, outcome in enumerate(outcomes):
        left.plot(
            outcome.losses,
            lw=7 - 2 * number,
            label=f"{WORKERS[number]} worker" + "s" * (number > 0),
        )
    left.set(
        title=f"four runs, one curve; weights {outcomes[0].weights[:12]} in each",
        xlabel="step",
        ylabel="loss (nats a token)",
    )
    left.legend(frameon=False)
    records = read_records(Path(sys.argv[1]) / "records.jsonl")
    right.plot([r["step"] for r in records], [r["loss"] for r in records], lw=0.8, label="train")
    held = [(r["step"], r["held_out"]["loss"]) for r in records if r.get("held_out")]
    right.plot(*zip(*held, strict=True), "o-", label="held out")
    right.set(
        title="the default recipe (2.1 M parameters), 2 workers",
        xlabel="step",
        ylabel="loss (nats a token)",
    )
    right.legend(frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    target = Path(__file__).parent.parent / "docs" / "result.png"
    figure.savefig(target, dpi=110)
    print(target)


if __name__ == "__main__":
    main()
