"""One run of a comparison: its configuration, its folder, and the mark that says it is finished.

RUNS/STRATEGY-SEED/
    config.toml     everything that defines the run
    lm-.../         the run's own folder
    log.txt         the command, and what it said (standard error)
    output.txt      what it printed (standard output)
    finished.json   written last: the run's folder by name, the links, the kernel's counters
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shoal.config import differences, load, to_toml
from shoal.errors import ShoalError
from shoal.report.figures import Measured
from shoal.report.history import read_history
from shoal.strategy.options import LocalConfig, build_strategy
from shoal.strategy.parts import Delta, Servers, SharedMemory
from shoal.strategy.takes import TABLES, taken_by
from shoal.train.config import RunConfig, resolve, strategy_of
from shoal.train.folder import MANIFEST

CONFIG = "config.toml"
LOG = "log.txt"
OUTPUT = "output.txt"
FINISHED = "finished.json"


@dataclass(frozen=True, kw_only=True)
class Links:
    """The hosts that a comparison runs on, where they are not this machine alone."""

    hosts: int
    rate: str | None
    """Of each host's link, as `shoal lab run --link` takes it; None: as fast as it goes."""
    cpu: float | None
    """Cores of each host; None: no quota."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A strategy and a seed."""

    config: RunConfig
    links: Links | None
    folder: Path

    @property
    def label(self) -> str:
        """`ddp, seed 0`."""
        return f"{self.config.strategy}, seed {self.config.seed}"

    def is_finished(self) -> bool:
        """Whether it has run to its end.

        Raises ShoalError where what lies in its folder is something else.
        """
        if not self.folder.exists():
            return False
        stored = self.folder / CONFIG
        if not stored.exists():
            raise ShoalError(f"{self.folder} is in the way: it is not a comparison's; move it")
        changed = differences(load(RunConfig, files=[stored]), self.config)
        mark = self._mark() if (self.folder / FINISHED).exists() else None
        if mark is not None and mark.get("links") != self._links():
            changed.append(f"its hosts and links are {mark.get('links')} there")
        if changed:
            raise ShoalError(
                f"{self.folder} is of another comparison: {'; '.join(changed)}. Give --output a "
                "new folder, or the options of the first time"
            )
        return mark is not None

    def prepare(self) -> None:
        """An empty folder with the configuration; what an unfinished start has left goes."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        (self.folder / CONFIG).write_text(to_toml(self.config))

    def run_folder(self) -> Path | None:
        """The run's own folder, once it is there."""
        return next((path.parent for path in self.folder.glob(f"*/{MANIFEST}")), None)

    def finish(self, kernel_bytes: int | None) -> None:
        """Write the mark, in one step."""
        run = self.run_folder()
        assert run is not None
        mark = {"run": run.name, "links": self._links(), "kernel_bytes_sent": kernel_bytes}
        partial = self.folder / f".{FINISHED}.partial"
        partial.write_text(json.dumps(mark))
        os.replace(partial, self.folder / FINISHED)

    def measured(self) -> Measured:
        """What a finished trial measured. Raises ShoalError where its files are damaged."""
        mark = self._mark()
        sent = mark.get("kernel_bytes_sent")
        return Measured(
            strategy=self.config.strategy,
            seed=self.config.seed,
            history=read_history(self.folder / Path(str(mark.get("run"))).name),
            kernel_bytes=sent if isinstance(sent, int) else None,
        )

    def _links(self) -> dict[str, Any] | None:
        return None if self.links is None else asdict(self.links)

    def _mark(self) -> dict[str, Any]:
        path = self.folder / FINISHED
        try:
            mark = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ShoalError(f"{path} cannot be read: {error}; remove it to run again") from None
        if not isinstance(mark, dict):
            raise ShoalError(f"{path} is not what a comparison writes; remove it to run again")
        return mark


def trials(
    config: RunConfig, strategies: Sequence[str], seeds: int, links: Links | None, runs: Path
) -> list[Trial]:
    """Every strategy once for each seed, from the configuration's own seed on.

    Strategies alternate, and every other seed turns their order round, so that a machine that
    slows down or speeds up is unfair to none.

    Raises ShoalError, before anything starts, for a strategy that cannot run.
    """
    configs = _for_each(config, strategies)
    for each in configs if links is not None else ():
        _require_hosts(each)
    found = []
    for number in range(seeds):
        for each in configs if number % 2 == 0 else reversed(configs):
            seeded = resolve(replace(each, seed=each.seed + number))
            name = f"{_file_name(each.strategy)}-seed{seeded.seed}"
            found.append(Trial(config=seeded, links=links, folder=runs / name))
    return found


def _require_hosts(config: RunConfig) -> None:
    """Raises ShoalError for a strategy that the lab's hosts cannot run."""
    owner = strategy_of(config).owner
    if isinstance(owner, Servers):
        raise ShoalError(
            f"strategy {config.strategy!r} has parameter servers, which --hosts does not start; "
            "compare it without --hosts"
        )
    if isinstance(owner, SharedMemory):
        raise ShoalError(
            f"strategy {config.strategy!r} needs one memory, and hosts share none; compare it "
            "without --hosts"
        )


def _for_each(config: RunConfig, strategies: Sequence[str]) -> list[RunConfig]:
    """The configuration with each strategy, and with those options of it that it takes.

    Raises ShoalError for an option that no strategy takes.
    """
    given = {
        f"{table}.{key}"
        for table in TABLES
        for key, value in asdict(getattr(config, table)).items()
        if value is not None
    }
    configs, unread = [], set(given)
    for name in strategies:
        taken = given & _taken(name, config.local.outer_momentum)
        unread -= taken
        tables = {table: _only(getattr(config, table), table, taken) for table in TABLES}
        configs.append(replace(config, strategy=name, **tables))
    if unread:
        raise ShoalError(
            f"{min(unread)} has no effect with any of {', '.join(strategies)}; leave it unset"
        )
    return configs


def _taken(name: str, momentum: float | None) -> set[str]:
    """The keys of a strategy's options that this comparison hands to it.

    A warm-up is for those that begin with one: a baseline beside them is what it always is.
    """
    strategy = build_strategy(name, LocalConfig())
    keys = taken_by(strategy)
    if momentum and "local.outer_momentum" in keys:  # with which others may have an effect
        keys = taken_by(build_strategy(name, LocalConfig(outer_momentum=momentum)))
    if strategy.first is None and not isinstance(strategy.payload, Delta):
        keys -= {"local.warm_up", "local.warm_up_with"}
    return keys


def _only(options: Any, table: str, taken: Set[str]) -> Any:
    """A table of options with those alone that are taken."""
    others = {key: None for key in asdict(options) if f"{table}.{key}" not in taken}
    return replace(options, **others)


def _file_name(strategy: str) -> str:
    return re.sub(r"[^\w.+-]", "_", strategy)
