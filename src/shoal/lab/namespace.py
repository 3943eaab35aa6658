"""A set of kernel namespaces that lives as long as the object that holds it."""

from __future__ import annotations

import contextlib
import errno
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoal.errors import ShoalError

SWITCH = ("net",)
"""What the switch between the hosts has of its own."""

HOST = ("uts", "net", "pid", "mnt")
"""What a host has of its own: name, network, processes, mounts (and with them shared memory)."""

_INSIDE = [sys.executable, "-I", "-S", str(Path(__file__).with_name("inside.py"))]


class Namespace:
    """Namespaces of the given kinds, kept by a small process until `close` or this one's end.

    `tag` names the owner in the process list, `names` is the text of a host's /etc/hosts. Raises
    ShoalError where the kernel does not permit namespaces.
    """

    def __init__(self, kinds: Sequence[str], *, name: str, tag: str, names: str = "") -> None:
        self.kinds = tuple(kinds)
        self.name = name
        self._holder = subprocess.Popen(
            [*_INSIDE, "hold", tag, ",".join(kinds), name],
            stdin=subprocess.PIPE,  # its end ends the host
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C is for the lab to pass on
        )
        assert self._holder.stdin is not None and self._holder.stdout is not None
        self.pid = 0
        try:
            with contextlib.suppress(BrokenPipeError):  # it has something to say then
                self._holder.stdin.write(names.encode() + b"\0")
                self._holder.stdin.flush()
            answer = self._holder.stdout.readline()
            if not answer:
                raise ShoalError(self._refusal())
            self.pid = int(answer)
        except BaseException:
            self.close()
            raise

    def command(
        self,
        words: Sequence[str],
        *,
        kinds: Sequence[str] | None = None,
        cgroup: Path | None = None,
    ) -> list[str]:
        """The command line that runs `words` inside, as a member of `cgroup` where one is given."""
        inside = ",".join(self.kinds if kinds is None else kinds)
        return [*_INSIDE, "enter", str(self.pid), inside, str(cgroup or "-"), "--", *words]

    def configure(self, program: str, lines: Sequence[str]) -> None:
        """Run a batch of lines of `ip` or `tc` on this network.

        Raises ShoalError with the program's words.
        """
        if lines:
            tell(self.command([program, "-batch", "-"], kinds=("net",)), lines)

    def processes(self) -> list[int]:
        """The ids, as this process sees them, of a host's processes, the first one included."""
        mine = _link(Path(f"/proc/{self.pid}/ns/pid"))
        return [
            int(path.name)
            for path in Path("/proc").iterdir()
            if path.name.isdigit() and mine and _link(path / "ns" / "pid") == mine
        ]

    def close(self) -> None:
        """End the namespaces, and every process in them; twice is no fault."""
        holder: subprocess.Popen[Any] = self._holder
        for pipe in (holder.stdin, holder.stdout, holder.stderr):
            if pipe is not None:
                pipe.close()
        try:
            holder.wait(timeout=5)
        except subprocess.TimeoutExpired:
            holder.kill()
            holder.wait()

    def _refusal(self) -> str:
        assert self._holder.stderr is not None
        said = self._holder.stderr.read().decode(errors="replace").strip()
        number, _, reason = said.partition(" ")
        if number == str(errno.EPERM):
            return (
                "this user may not make network namespaces (Operation not permitted); run it as "
                "root, or put `unshare -Urnm` before the command"
            )
        if number == str(errno.ENOSPC):
            return (
                "the kernel's limit of namespaces is reached; raise the sysctl "
                "user.max_net_namespaces (and its siblings user.max_*_namespaces)"
            )
        return f"the kernel refuses namespaces ({reason or said}); `shoal lab` needs Linux"


def tell(command: Sequence[str], lines: Sequence[str]) -> None:
    """Run a program with lines on its standard input; ShoalError with its words if it fails."""
    done = subprocess.run(
        command, input="\n".join([*lines, ""]), capture_output=True, text=True, timeout=60
    )
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split()) or f"status {done.returncode}"
        raise ShoalError(f"the lab's network cannot be set up: {words}")


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:  # it has ended, or is not ours to see
        return ""
