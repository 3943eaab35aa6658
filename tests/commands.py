"""Run `shoal` commands in real worker processes on a tiny corpus, and break them where wanted."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import attempt

WORDS = "sea wind fish shoal turn light deep silver move as one follow near far tide cold warm swim"
CONFIG = """
[data]
source = "corpus.txt"
sequence_length = 16
vocab_size = 300
[model]
depth = 1
width = 32
[batch]
global_batch = 8
micro_batch = 1
[budget]
steps = 8
[evaluation]
every = 4
samples = 8
[checkpoint]
save_every = 2
keep = 3
[records]
tensorboard = false
"""


def prepare(folder: Path) -> Path:
    """A corpus and a configuration: `shoal train tiny.toml` there takes a second."""
    chance = random.Random(0)
    documents = (" ".join(chance.choice(WORDS.split()) for _ in range(120)) for _ in range(60))
    (folder / "corpus.txt").write_text(".\\n\\n".join(documents))
    (folder / "tiny.toml").write_text(CONFIG)
    return folder


@dataclass(frozen=True)
class Fault:
    """What happens to a worker, or to all of them (`worker` None), in a step."""

    what: str
    """`kill`, `interrupt` or `stop` before the end of the step; `kill before commit`, `kill after
    commit` of its save; `full disk` from the first step on."""
    step: int = 0
    worker: int | None = None


@dataclass(frozen=True)
class Ended:
    """How one worker's command ended. `status` is None where a signal killed it."""

    status: int | None
    text: str


def seats(
    workers: int,
    *words: str,
    at: Path,
    fault: Fault | None = None,
    environment: Callable[[int], dict[str, str | None]] = lambda rank: {},
    extra: Sequence[Sequence[str]] = (),
    timeout: float = 60,
) -> list[Ended]:
    """`shoal WORDS` in each of `workers` processes that know of each other, as under torchrun.

    `extra[rank]` are words for one worker alone; `environment(rank)` sets variables, or unsets
    those that are None.
    """
    logs = [at / f"log-{rank}.txt" for rank in range(workers)]
    arguments = [
        (list(words) + list(extra[rank] if extra else ()), environment(rank))
        for rank in range(workers)
    ]
    outcomes = attempt(workers, _command, str(at), arguments, fault, timeout=timeout)
    texts = [log.read_text() if log.exists() else "" for log in logs]
    for log in logs:
        log.unlink(missing_ok=True)
    return [Ended(status, text) for (status, _), text in zip(outcomes, texts, strict=True)]


def said(ended: Sequence[Ended]) -> str:
    """What the workers printed, all of them: a fault is told once, by whichever comes first."""
    return "".join(worker.text for worker in ended)


def launched(*words: str, at: Path) -> subprocess.Popen[str]:
    """`shoal WORDS` as a person starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "shoal", *words],
        cwd=at,
        env=os.environ | {"SHOAL_CACHE": str(at / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def judged(*words: str, at: Path) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """`shoal train WORDS` on real data: the model's figures, and those of its baselines."""
    subprocess.run([sys.executable, "-m", "shoal", "train", *words, "--workers", "2"], cwd=at,
                   check=True, timeout=3000, env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    baselines = json.loads((the_run(at) / "results.json").read_text())["scores"]
    return baselines.pop("this model"), baselines


def the_run(at: Path) -> Path:
    """The only run in a folder."""
    (run,) = (at / "runs").iterdir()
    return run


def weights(ended: Sequence[Ended]) -> str:
    """The SHA-256 that the first worker printed at the end."""
    found = re.search(r"weights SHA-256: ([0-9a-f]{64})", ended[0].text)
    assert found, ended[0].text
    return found.group(1)


def losses(run: Path) -> list[tuple[int, float]]:
    """(step, loss) of every record."""
    lines = (run / "records.jsonl").read_text().splitlines()
    return [(record["step"], record["loss"]) for record in map(json.loads, lines)]


def _command(at: str, arguments: Any, fault: Fault | None) -> int:
    rank = int(os.environ["RANK"])
    words, environment = arguments[rank]
    os.chdir(at)
    os.environ["SHOAL_CACHE"] = str(Path(at) / "cache")
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    log = os.open(f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    if fault is not None and fault.worker in (None, rank):
        _break(fault)
    from shoal.cli.main import run

    return run(words)


def _break(fault: Fault) -> None:
    """Let the real thing happen to this process, at an exact place."""
    from shoal.checkpoint import Checkpoints
    from shoal.strategy.worker import Worker

    def hit(number: int) -> None:
        os.kill(os.getpid(), number)

    step, commit = Worker.step, Checkpoints.commit

    def breaking_step(worker: Worker) -> Any:
        numbers = {"kill": signal.SIGKILL, "interrupt": signal.SIGINT, "stop": signal.SIGSTOP}
        if worker.steps == fault.step - 1 and fault.what in numbers and worker._leaf.closes_step:
            hit(numbers[fault.what])
        if fault.what == "full disk" and worker._leaf.closes_step:  # after shared memory was had
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        return step(worker)

    def breaking_commit(checkpoints: Checkpoints, partial: Any, at: int, *rest: Any) -> Any:
        if at == fault.step and fault.what == "kill before commit":
            hit(signal.SIGKILL)
        result = commit(checkpoints, partial, at, *rest)
        if at == fault.step and fault.what == "kill after commit":
            hit(signal.SIGKILL)
        return result

    Worker.step, Checkpoints.commit = breaking_step, breaking_commit  # type: ignore[method-assign]
