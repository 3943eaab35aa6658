"""Steps on slow links: seconds, use of the processor and bytes by strategy, on hosts of `shoal lab`.

Four hosts, half a core each, links shaped by the kernel. Each case is one `shoal train` of a
0.8 M decoder; the link's bytes are the kernel's counters, less those of a run without steps.

    use        computing over the whole step, median over hosts of the phase's sum
    formula    what the wire's ledger counted: payloads, headers, counts and norms
    kernel     what crossed the host's interface, all headers included
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from measure import arguments, table, write

from shoal.lab.lab import Lab

HOSTS = 4
CPU = 0.5
SETTINGS = (
    "data.source=sotu", "model.depth=2", "data.vocab_size=1024", "data.sequence_length=128",
    "batch.global_batch=32", "batch.micro_batch=8", "evaluation.samples=1", "evaluation.every=0",
    "checkpoint.save_every=0", "records.tensorboard=false",
)  # fmt: skip
LOCAL = ("local.warm_up=0.2",)
CASES = (
    ("ddp", "5gbit", 10, ()),
    ("ddp", "1gbit", 10, ()),
    ("ddp", "300mbit", 10, ()),
    ("ddp", "100mbit", 8, ()),
    ("ddp+bf16", "20mbit", 10, ()),
    ("ddp+bf16", "6mbit", 8, ()),
    ("ddp+bf16", "1200kbit", 4, ()),
    ("streaming_diloco", "20mbit", 75, LOCAL),
    ("streaming_diloco", "6mbit", 75, LOCAL),
    ("streaming_diloco", "1200kbit", 75, LOCAL),
    ("sparse_loco", "1200kbit", 75, LOCAL),
)


def main() -> None:
    """All cases, one after the other."""
    args = arguments(__doc__)
    cases = [c for c in CASES if "20mbit" in c] if args.quick else CASES
    found = [_measure(*case) for case in cases]
    rows = [
        [f"{c['strategy']}, {c['link']}, {phase['of']}", phase["seconds"], f"{phase['use']:.1%}",
         phase["bytes_a_token"], c["kernel_over_ledger"]]
        for c in found for phase in c["phases"]
    ]  # fmt: skip
    table(["4 hosts", "s / step", "use", "bytes / token", "kernel / formula"], rows)
    write("slow_link", args, {"hosts": HOSTS, "cpu": CPU, "settings": SETTINGS, "cases": found})


def _measure(strategy: str, link: str, steps: int, local: tuple[str, ...]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, Lab(hosts=HOSTS, link=link, cpu=CPU) as lab:
        words = [w for setting in (*SETTINGS, *local) for w in ("--set", setting)]
        command = ["shoal", "train", "--workers", str(HOSTS), "--strategy", strategy, "--steps",
                   str(steps), "--runs", folder, *words]  # fmt: skip
        outcome = lab.run(command, capture=True, timeout=500)
        if outcome.status:
            raise SystemExit(f"{strategy} at {link}: {outcome.outputs[0][-2000:]}")
        (run,) = Path(folder).iterdir()
        paths = [run / "records.jsonl", *sorted((run / "workers").glob("*.jsonl"))]
        hosts = [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]
    ledger = sum(record["bytes_sent"] for record in hosts[0])
    print(f"{strategy} at {link}: {outcome.seconds:.0f} s", flush=True)
    return {
        "strategy": strategy,
        "link": link,
        "steps": steps,
        "ledger_bytes": ledger,
        "kernel_bytes": outcome.traffic[0][1],
        "kernel_over_ledger": outcome.traffic[0][1] / ledger,
        "phases": _phases(hosts, steps, local),
        "records": hosts[0],
    }


def _phases(
    hosts: list[list[dict[str, Any]]], steps: int, local: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Before and after the switch to local steps; the first two steps warm up and count nowhere."""
    switch = -(-steps // 5) if local else steps
    parts = [("every step", 2, switch), ("local steps", switch + 5, steps)]
    return [
        _phase(name, [records[first:last] for records in hosts])
        for name, first, last in parts
        if first < last
    ]


def _phase(name: str, hosts: list[list[dict[str, Any]]]) -> dict[str, Any]:
    kinds = ("computing", "exchanging", "waiting", "data")
    spent = [{k: sum(r[f"seconds_{k}"] for r in records) for k in kinds} for records in hosts]
    tokens = 32 * 128 * len(hosts[0])
    return {
        "of": name,
        "seconds": statistics.median(sum(s.values()) for s in spent) / len(hosts[0]),
        "use": statistics.median(s["computing"] / sum(s.values()) for s in spent),
        "bytes_a_token": sum(r["bytes_sent"] for r in hosts[0]) / tokens,
    }


if __name__ == "__main__":
    main()
