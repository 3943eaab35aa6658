"""The program that stands with one foot in a lab's host; run by path, with nothing but Python.

    inside.py hold TAG KINDS NAME           be a host: make its namespaces, and keep them until
                                            standard input ends, which begins with the text of
                                            the host's /etc/hosts and a zero byte
    inside.py enter PID KINDS CGROUP -- ... run a command in the namespaces of a process

A host lives as long as the pipe to its `hold`: when the lab's owner ends, however it ends, the
kernel closes the pipe, the host's first process ends, and with it the kernel ends every process
of the host and takes the interfaces away.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

FLAGS = {"mnt": 0x00020000, "uts": 0x04000000, "pid": 0x20000000, "net": 0x40000000}
"""Kinds of namespaces, by their file in /proc/PID/ns, and the kernel's flag for each."""

_BIND, _REC, _PRIVATE, _NOSUID, _NODEV, _NOEXEC = 0x1000, 0x4000, 0x40000, 2, 4, 8
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT,
              signal.SIGUSR1, signal.SIGUSR2)  # fmt: skip
_SET_PARENT_DEATH_SIGNAL = 1

_c = ctypes.CDLL(None, use_errno=True)


def hold(kinds: list[str], name: str) -> None:
    """Make namespaces and keep them until standard input ends; tell the first process's id."""
    _check(_c.unshare(sum(FLAGS[kind] for kind in kinds)), "unshare")
    told, tell = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(told)
        for number in _PASSED_ON:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the host's orphans
        names = b""
        while not names.endswith(b"\0"):
            names += os.read(0, 1) or os._exit(1)
        if "mnt" in kinds:
            _furnish(name, names[:-1])
        os.write(tell, b"ready")
        os.close(tell)
        os.close(1)
        while os.read(0, 1):
            pass
        os._exit(0)
    os.close(tell)
    if os.read(told, 5) == b"ready":
        print(first, flush=True)
    os.waitpid(first, 0)


def enter(pid: int, kinds: list[str], cgroup: str, command: list[str]) -> None:
    """Run a command in the namespaces of process `pid`; pass signals on, end as it ends."""
    if cgroup != "-":
        with open(os.path.join(cgroup, "cgroup.procs"), "w") as members:
            members.write(str(os.getpid()))
    here = os.getcwd()
    handles = [(os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY), FLAGS[kind]) for kind in kinds]
    for handle, flag in handles:
        _check(_c.setns(handle, flag), "setns")
        os.close(handle)
    os.chdir(here)
    watched = {*_PASSED_ON, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    child = os.fork()  # a PID namespace is entered by children only
    if child == 0:
        _check(_c.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL), "prctl")
        for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):  # Python has changed them
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            os.execvp(command[0], command)
        except OSError as error:
            print(f"cannot run {command[0]!r}: {error.strerror}", file=sys.stderr, flush=True)
            os._exit(127)
    _end_like(_outlive(child, watched))


def _outlive(child: int, watched: set[signal.Signals]) -> int:
    """Pass signals on until the child has ended; its exit code, negative for a signal."""
    while True:
        number = signal.sigwait(watched)
        if number != signal.SIGCHLD:
            os.kill(child, number)
            continue
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)


def _end_like(code: int) -> None:
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)


def _furnish(name: str, names: bytes) -> None:
    """A host's own name, process table, shared memory and /etc/hosts.

    What a container forbids stays shared.
    """
    _mount("none", "/", None, _REC | _PRIVATE, None)
    _c.sethostname(name.encode(), len(name))
    with contextlib.suppress(OSError):
        _mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC, None)
    with contextlib.suppress(OSError):
        _mount("tmpfs", "/dev/shm", "tmpfs", _NOSUID | _NODEV, "mode=1777")
        with open("/dev/shm/hosts", "wb") as file:
            file.write(names)
        try:
            _mount("/dev/shm/hosts", "/etc/hosts", None, _BIND, None)
        finally:
            os.unlink("/dev/shm/hosts")  # what is mounted stays


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None) -> None:
    words = [word.encode() if word is not None else None for word in (source, target, kind)]
    _check(_c.mount(*words, ctypes.c_ulong(flags), data.encode() if data else None), "mount")


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def main(words: list[str]) -> None:
    """See the module."""
    try:
        if words[0] == "hold":
            _, _, kinds, name = words
            hold(kinds.split(","), name)
        else:
            _, pid, kinds, cgroup, _, *command = words
            enter(int(pid), kinds.split(","), cgroup, command)
    except OSError as error:  # the number is for `Namespace` to explain
        place = f"{error.filename}: " if error.filename else ""
        print(f"{error.errno} {place}{error.strerror}", file=sys.stderr, flush=True)
        os._exit(125)


if __name__ == "__main__":
    main(sys.argv[1:])
