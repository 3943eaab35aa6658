"""Several hosts on one machine, as a context manager."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

from shoal.errors import ShoalError
from shoal.lab.job import Outcome, run_job, worker_environment
from shoal.lab.namespace import HOST, SWITCH, Namespace
from shoal.lab.network import MOST_HOSTS, Network, address, host_table, require_programs
from shoal.lab.owner import owner_tag, sweep
from shoal.lab.quota import LEAST, Quotas
from shoal.lab.units import parse_delay, parse_rate


class Lab:
    """`hosts` hosts on a switch, each with its own address, processes and shared memory.

    `link` is the rate of each host's cable in both directions (`20mbit`), `delay` what a frame
    takes from any host to any other (`25ms`; an answer comes after twice that), `cpu` the cores
    that all processes of a host may use together (0.5). None is no limit. The hosts reach each
    other and nothing else; files are the machine's.

        with Lab(hosts=4, link="20mbit", cpu=0.5) as lab:
            outcome = lab.run(["shoal", "train", "--steps", "10"])
            print(outcome.status, lab.counters())

    Everything ends with the block, or with this process, however that ends. Raises ShoalError for
    a value that makes no sense, and (on entering) where the machine does not permit it.
    """

    def __init__(
        self,
        *,
        hosts: int = 2,
        link: str | None = None,
        cpu: float | None = None,
        delay: str | None = None,
    ) -> None:
        if not 1 <= hosts <= MOST_HOSTS:
            raise ShoalError(f"a lab has from 1 to {MOST_HOSTS} hosts, not {hosts}")
        if cpu is not None and not LEAST <= cpu <= (os.cpu_count() or 1):
            raise ShoalError(
                f"a host's CPU quota is from {LEAST} to this machine's {os.cpu_count()} cores, "
                f"not {cpu:g}"
            )
        self.hosts, self.cpu = hosts, cpu
        self.rate = None if link is None else parse_rate(link)
        self.delay = 0.0 if delay is None else parse_delay(delay)
        self.addresses = [address(host) for host in range(hosts)]
        self._stack = ExitStack()
        self._started: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Self:
        """Build it; about a tenth of a second a host."""
        if sys.platform != "linux":
            raise ShoalError("a lab needs Linux: its hosts are network namespaces")
        require_programs()
        sweep()
        tag = owner_tag()
        with ExitStack() as stack:
            quotas = None
            if self.cpu is not None:
                quotas = Quotas(tag, self.hosts, self.cpu)
                stack.callback(quotas.close)
            stack.callback(self._bury)
            self._groups = quotas.groups if quotas else [None] * self.hosts
            switch = Namespace(SWITCH, name="switch", tag=tag)
            stack.callback(switch.close)
            names = host_table(self.hosts)
            self._namespaces: list[Namespace] = []
            for host in range(self.hosts):
                namespace = Namespace(HOST, name=f"host{host}", tag=tag, names=names)
                stack.callback(namespace.close)
                self._namespaces.append(namespace)
            self._network = Network(switch, self._namespaces, rate=self.rate, delay=self.delay)
            stack.callback(self._network.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End every process in it and take it down."""
        self._stack.close()

    def start(
        self,
        host: int,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Start one command on one host, with a worker's environment; `options` are Popen's.

        The process passes signals on to the command, ends as it ends, and takes it along when it
        is killed. Raises ShoalError when there is no such command.
        """
        base = {**os.environ, **(environment or {})}
        variables = worker_environment(base, host, self.hosts)
        if shutil.which(command[0], path=variables["PATH"]) is None:
            raise ShoalError(f"there is no command {command[0]!r}")
        process = subprocess.Popen(
            self._namespaces[host].command(command, cgroup=self._groups[host]),
            **{"stdin": subprocess.DEVNULL, "start_new_session": True, **options},
            env=variables,
        )
        self._started.append(process)
        return process

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        capture: bool = False,
        timeout: float | None = None,
    ) -> Outcome:
        """Run a command on every host as the workers of one job, and wait for all of them.

        What host 0 prints appears as it is, what the others print on standard error with the
        host's name before it; `capture` keeps both for the outcome instead. When one host fails,
        the others get 20 seconds to notice. Ctrl-C and SIGTERM are passed on. Raises ShoalError
        when there is no such command, or it takes longer than `timeout` seconds.
        """

        def start(host: int, stdout: int | None, stderr: int | None) -> subprocess.Popen[Any]:
            return self.start(host, command, environment=environment, stdout=stdout, stderr=stderr)

        return run_job(start, self.hosts, self.counters, capture=capture, timeout=timeout)

    def counters(self) -> dict[int, tuple[int, int]]:
        """By host: the bytes that it has received and sent since the start, by the kernel.

        With the headers of every frame on links of up to 500 mbit; on faster ones the kernel
        hands over segments of up to 64 KB, and counts one header each.
        """
        return self._network.counters()

    def processes(self, host: int) -> list[int]:
        """The ids of the processes on a host, as this process sees them."""
        return self._namespaces[host].processes()

    def _bury(self) -> None:
        """Wait for what was started; its hosts have ended, and so has what ran in them."""
        deadline = time.monotonic() + 5
        for process in self._started:
            try:
                process.wait(timeout=max(deadline - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._started.clear()
