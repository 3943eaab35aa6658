"""Every recipe on its real data: figures over three seeds beside its baselines, time, throughput.

python benchmarks/recipes.py train NAME...    # three seeds each, two workers
python benchmarks/recipes.py speed NAME...    # 2 workers over 1, alternating
python benchmarks/recipes.py draw NAME...     # docs/recipes/NAME.png, of the run of seed 0
python benchmarks/recipes.py table            # the table of docs/recipes.md

Without names, all of them; SEEDS=1,2 trains those alone. Results are kept in benchmarks/results/recipes.json.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "recipes.json"
PICTURES = HERE.parent / "docs" / "recipes"
RUNS = Path(os.environ.get("SHOAL_RUNS", "/tmp/shoal-recipes"))
SEEDS = tuple(map(int, os.environ.get("SEEDS", "0,1,2").split(",")))
ROUNDS = 3
QUIET = ["--set", "records.tensorboard=false"]

CASES: dict[str, list[str]] = {
    "sentiment": ["sentiment"],
    "sentiment-spam": ["sentiment", "--data", "spam"],
    "sentiment-minilm": ["sentiment", "--model", "minilm"],
    "translation": ["translation"],
    "summarization": ["summarization"],
    "speech": ["speech"],
    "images-animals": ["images"],
    "images-animals-vit": ["images", "--set", "model.kind=vit"],
    "images-digits": ["images", "--data", "digits"],
    "video": ["video"],
    "health": ["health"],
    "equipment": ["equipment"],
    "traffic": ["traffic"],
    "finetune": ["finetune"],
}


def main() -> None:
    what, *names = sys.argv[1:] or ["table"]
    for name in names or CASES:
        if what == "table":
            break
        {"train": train, "speed": speed, "draw": draw}[what](name)
    if what == "table":
        print(table())


def shoal(words: list[str], runs: Path, *, judged: bool = True) -> Path:
    """Train; the run's folder. Unless `judged`, it ends before scores and baselines."""
    command = [sys.executable, "-m", "shoal", "train", *words, *QUIET, "--runs", str(runs)]
    before = set(runs.glob("*"))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", file=sys.stderr)
            if not judged and line.startswith("weights SHA-256"):
                process.terminate()
                break
    if judged and process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    (run,) = set(runs.glob("*")) - before
    return run


def train(name: str) -> None:
    kept = results().get(name, {}).get("seeds", {})
    for seed in SEEDS:
        if str(seed) in kept:
            continue
        began = time.monotonic()
        run = shoal([*CASES[name], "--workers", "2", "--set", f"seed={seed}"], RUNS / name)
        scores = json.loads((run / "results.json").read_text())["scores"]
        rows = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
        kept[str(seed)] = {
            "run": str(run),
            "scores": scores,
            "steps": rows[-1]["step"],
            "seconds_in_all": round(time.monotonic() - began, 1),
            "seconds_training": round(sum(map(seconds_of, rows)), 1),
        }
        keep(name, seeds=kept)


def speed(name: str) -> None:
    """Targets a second with 2 workers over 1, in runs that alternate; the first step is left out."""
    steps = {"finetune": 3, "sentiment-minilm": 8}.get(name, 25)
    ratios = []
    for _ in range(ROUNDS):
        rates = []
        for workers in (1, 2):
            words = [*CASES[name], "--workers", str(workers), "--steps", str(steps),
                     "--set", "evaluation.every=0", "--set", "evaluation.samples=8",
                     "--set", "checkpoint.save_every=0"]  # fmt: skip
            run = shoal(words, RUNS / f"{name}-speed", judged=False)
            rows = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
            rates.append(sum(r["tokens"] for r in rows[1:]) / sum(map(seconds_of, rows[1:])))
        ratios.append(rates[1] / rates[0])
    keep(name, speed={"ratios": ratios, "median": statistics.median(ratios),
                      "targets_per_second": rates[1]})  # fmt: skip


def seconds_of(row: dict[str, Any]) -> float:
    return sum(row[f"seconds_{part}"] for part in ("computing", "exchanging", "waiting", "data"))


def draw(name: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import torch
    from matplotlib.figure import Figure

    from shoal.recipes.finished import open_run

    sys.path.insert(0, str(HERE / "drawing"))
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    with torch.no_grad():
        run = open_run(Path(results()[name]["seeds"]["0"]["run"]))
        import_module(CASES[name][0]).draw(run, figure)
    figure.savefig(PICTURES / f"{name}.png", dpi=110)


def results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def keep(name: str, **found: Any) -> None:
    every = results()
    every[name] = {**every.get(name, {}), **found}
    RESULTS.write_text(json.dumps({n: every[n] for n in CASES if n in every}, indent=1) + "\n")


def table() -> str:
    lines = ["| recipe | figure | this model | baselines | training | 2 workers over 1 |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for name, kept in results().items():
        seeds = list(kept.get("seeds", {}).values())
        if not seeds:
            continue
        took = statistics.median(one["seconds_training"] for one in seeds)
        faster = f"{kept['speed']['median']:.2f}x" if "speed" in kept else "-"
        for number, figure in enumerate([*seeds[0]["scores"]["this model"]][:4]):
            mine = spread([one["scores"]["this model"][figure] for one in seeds])
            others = [
                f"{method} {spread([one['scores'][method][figure] for one in seeds])}"
                for method in seeds[0]["scores"]
                if method != "this model" and figure in seeds[0]["scores"][method]
            ]
            cells = [f"[{name}](recipes/{CASES[name][0]}.md)", f"{took:.0f} s", faster]
            first, *rest = cells if number == 0 else ["", "", ""]
            lines.append(f"| {first} | {figure} | {mine} | {', '.join(others)} | "
                         + " | ".join(rest) + " |")  # fmt: skip
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """The median and, where the seeds differ, how far from the least to the most."""
    middle, digits = statistics.median(values), 1 if max(map(abs, values)) >= 10 else 3
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return f"{middle:.{digits}f}" + (f" ({low} to {high})" if low != high else "")


if __name__ == "__main__":
    main()
