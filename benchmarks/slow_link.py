"""Steps on slow links: seconds, use of the processor and bytes by strategy, on hosts of `shoal lab`.

Four hosts, half a core each, links shaped by the kernel. Each case is one `shoal train` of a
decoder of 0.5 or 11 M parameters.

    use        computing over the whole step, median over hosts of the phase's sum
    formula    what the wire's ledger counted: payloads, headers, counts and norms
    kernel     what host 0 sent, all headers, the start and the evaluation included
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measure import RESULTS, arguments, table, write

from shoal.lab.lab import Lab

HOSTS = 4
CPU = 0.5
SETTINGS = (
    "data.source=sotu", "data.vocab_size=1024", "data.sequence_length=128",
    "batch.global_batch=32", "batch.micro_batch=8", "evaluation.samples=1", "evaluation.every=0",
    "checkpoint.save_every=0", "records.tensorboard=false",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One run; `warm_up` is the share before its local steps, or none where it has none."""

    strategy: str
    link: str
    steps: int
    warm_up: float | None = None
    depth: int = 2
    inner_steps: int = 30

    @property
    def switch(self) -> int:
        """Steps before the local ones."""
        return self.steps if self.warm_up is None else math.ceil(self.steps * self.warm_up)


SMALL = (
    # Fast links, where what is spared costs more than it is worth.
    Case("ddp", "5gbit", 20), Case("ddp+bf16", "5gbit", 20), Case("ddp+int4", "5gbit", 20),
    Case("ddp", "1gbit", 10), Case("ddp+bf16", "1gbit", 10), Case("ddp+int4", "1gbit", 10),
    Case("ddp", "300mbit", 10), Case("ddp+bf16", "300mbit", 10),
    Case("ddp", "100mbit", 8), Case("ddp+bf16", "100mbit", 8),
    Case("streaming_diloco", "5gbit", 75, 0.2), Case("streaming_diloco", "100mbit", 75, 0.2),
    # Slow ones; at 17 and 3.2 Mbit/s `ddp+bf16` communicates 10 and 50 times as long as it computes,
    # at 14 and 2.6 Mbit/s on a machine that computes more slowly.
    Case("ddp+bf16", "20mbit", 10), Case("ddp+bf16", "6mbit", 8), Case("ddp+bf16", "2mbit", 5),
    Case("ddp+bf16", "1200kbit", 4), Case("sparse_loco", "1200kbit", 150, 0.1, inner_steps=135),
    *(Case("streaming_diloco", link, 75, 0.2) for link in ("20mbit", "6mbit", "2mbit", "1200kbit")),
    *(Case("streaming_diloco", link, 198, 0.0, inner_steps=99)
      for link in ("6mbit", "2mbit", "1200kbit")),
    *(case for link in ("17mbit", "14mbit", "3200kbit", "2600kbit") for case in (
        Case("ddp+bf16", link, 8), Case("streaming_diloco", link, 75, 0.2),
        Case("streaming_diloco", link, 54, 0.0, inner_steps=9),
        Case("streaming_diloco", link, 198, 0.0, inner_steps=99))),
)  # fmt: skip
LARGE = (
    *(Case("ddp", link, 8, depth=6) for link in ("5gbit", "2gbit", "1gbit", "300mbit")),
    *(Case("streaming_diloco", link, 35, 0.0, 6) for link in ("20mbit", "6mbit", "3mbit")),
)


def main() -> None:
    """All cases, or those of some links, one after the other. Others keep their records."""
    every = (*SMALL, *LARGE)
    args = arguments(__doc__, [*dict.fromkeys(case.link for case in every)])
    links = args.only or (["20mbit"] if args.quick else {case.link for case in every})
    record = RESULTS / "slow_link.json"
    known = json.loads(record.read_text())["cases"] if record.exists() else []
    found = [case for case in known if case["link"] not in links]
    for case in SMALL if args.quick else every:
        if case.link in links:
            found.append(_measure(case))
            _keep(found, args)
    rows = [
        [f"{c['strategy']}, depth {c['depth']}, {c['link']}, {phase['of']}", phase["seconds"],
         f"{phase['use']:.1%}", phase["bytes_a_token"], c["kernel_over_ledger"]]
        for c in found for phase in c["phases"]
    ]  # fmt: skip
    table(["4 hosts", "s / step", "use", "bytes / token", "kernel / formula"], rows)


def _keep(found: list[dict[str, Any]], args: argparse.Namespace) -> None:
    write("slow_link", args, {"hosts": HOSTS, "cpu": CPU, "settings": SETTINGS, "cases": found})


def _measure(case: Case) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, Lab(hosts=HOSTS, link=case.link, cpu=CPU) as lab:
        settings = [*SETTINGS, f"model.depth={case.depth}"]
        if case.warm_up is not None:
            settings += [f"local.warm_up={case.warm_up}", f"local.inner_steps={case.inner_steps}",
                         "local.ramp=0"]  # fmt: skip
        command = ["shoal", "train", "--workers", str(HOSTS), "--strategy", case.strategy,
                   "--steps", str(case.steps), "--runs", folder,
                   *(word for setting in settings for word in ("--set", setting))]  # fmt: skip
        outcome = lab.run(command, capture=True, timeout=500)
        if outcome.status:
            said = "\n".join(output[-1000:] for output in outcome.outputs)
            raise SystemExit(f"{case.strategy} at {case.link}: {said}")
        (run,) = Path(folder).iterdir()
        paths = [run / "records.jsonl", *sorted((run / "workers").glob("*.jsonl"))]
        hosts = [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]
    ledger = sum(record["bytes_sent"] for record in hosts[0])
    print(f"{case.strategy} at {case.link}: {outcome.seconds:.0f} s", flush=True)
    return {
        **asdict(case),
        "ledger_bytes": ledger,
        "kernel_bytes": outcome.traffic[0][1],
        "kernel_over_ledger": outcome.traffic[0][1] / ledger,
        "phases": _phases(hosts, case),
        "records": hosts[0],
    }


def _phases(hosts: list[list[dict[str, Any]]], case: Case) -> list[dict[str, Any]]:
    """Before and after the switch to local steps; the first two steps warm up and count nowhere."""
    parts = [("every step", 2, case.switch), ("local steps", case.switch + 5, case.steps)]
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
