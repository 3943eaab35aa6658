"""The lab's network: a switch, a cable to every host, and a shaper at both ends of each cable."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoal.errors import ShoalError
from shoal.lab.namespace import Namespace

INTERFACE = "eth0"
"""The name of a host's interface."""

MOST_HOSTS = 250

_FRAME = 1514  # bytes of a full Ethernet frame
_QUEUE = 0.05  # seconds that a frame may wait in a shaper before it is dropped: a switch's buffer
_FRAMED = 500_000_000  # bits a second up to which a busy machine passes single frames at that rate
_RELAY = [sys.executable, "-I", "-S", str(Path(__file__).with_name("relay.py"))]


def require_programs() -> None:
    """Raises ShoalError naming what is missing of `ip` and `tc`."""
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if missing:
        raise ShoalError(
            f"`{'` and `'.join(missing)}` cannot be found; install the package iproute2 "
            "(apt-get install iproute2)"
        )


def address(host: int) -> str:
    """The address of a host in the lab."""
    return f"10.0.0.{host + 1}"


def host_table(hosts: int) -> str:
    """The text of /etc/hosts: the hosts are called `host0`, `host1` and so on."""
    lines = [f"{address(host)} host{host}" for host in range(hosts)]
    lines += [f"::ffff:{address(host)} host{host}.lab" for host in range(hosts)]  # torch asks so
    return "\n".join(["127.0.0.1 localhost", "::1 localhost", *lines, ""])


class Network:
    """Cables from a switch to hosts: `rate` in bits a second, `delay` in seconds, host to host.

    Raises ShoalError where the kernel refuses a part of it.
    """

    def __init__(
        self, switch: Namespace, hosts: Sequence[Namespace], *, rate: int | None, delay: float
    ) -> None:
        self._switch, self._hosts = switch, hosts
        self._relays: list[subprocess.Popen[Any]] = []
        try:
            self._build(rate, delay)
        except BaseException:
            self.close()
            raise

    def counters(self) -> dict[int, tuple[int, int]]:
        """By host: bytes received and sent, frames and their headers, as the switch's ports count.

        Raises ShoalError when the lab has ended.
        """
        try:
            lines = Path(f"/proc/{self._switch.pid}/net/dev").read_text().splitlines()
        except OSError as error:
            raise ShoalError(f"the lab has ended: {error.strerror}") from None
        ports = {
            name.strip(): words.split() for name, _, words in (x.partition(":") for x in lines)
        }
        found = {}
        for host in range(len(self._hosts)):
            arrived, departed = (int(ports[_port(host)][column]) for column in (0, 8))
            found[host] = (departed, arrived)  # what leaves the port arrives at the host
        return found

    def close(self) -> None:
        """End the relays; the interfaces go with their namespaces."""
        for relay in self._relays:
            for pipe in (relay.stdin, relay.stdout, relay.stderr):
                assert pipe is not None
                pipe.close()
            relay.wait()
        self._relays = []

    def _build(self, rate: int | None, delay: float) -> None:
        ports = range(len(self._hosts))
        lines = [
            "link add switch type bridge mcast_snooping 0",
            *_honest("switch", rate),
            "link set switch up",
        ]
        if delay:
            for host in ports:
                self._relay(host, delay)
        else:
            lines += [
                f"link add {_port(host)} type veth peer name {INTERFACE} netns {namespace.pid}"
                for host, namespace in enumerate(self._hosts)
            ]
        for host in ports:
            lines += [*_honest(_port(host), rate), f"link set {_port(host)} master switch up"]
        self._switch.configure("ip", lines)
        self._switch.configure("tc", [_shaper(_port(host), rate) for host in ports if rate])
        for host, namespace in enumerate(self._hosts):
            lines = ["link set lo up", f"address add {address(host)}/24 dev {INTERFACE}",
                     *_honest(INTERFACE, rate), f"link set {INTERFACE} up"]  # fmt: skip
            namespace.configure("ip", lines)
            namespace.configure("tc", [_shaper(INTERFACE, rate)] if rate else [])

    def _relay(self, host: int, delay: float) -> None:
        """A cable through a process that holds every frame back; two cables make the delay."""
        relay = subprocess.Popen(
            [*_RELAY, str(self._switch.pid), _port(host), str(self._hosts[host].pid), INTERFACE,
             str(round(delay / 2 * 1e9))],
            stdin=subprocess.PIPE,  # its end ends the relay
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )  # fmt: skip
        self._relays.append(relay)
        assert relay.stdout is not None and relay.stderr is not None
        if relay.stdout.readline() != "ready\n":
            reason = relay.stderr.read().strip()
            raise ShoalError(
                "a delay needs a TUN device for the relay that stands in for the kernel's netem, "
                f"and there is none to be had ({reason}); run the lab as root, or leave the "
                "delay out"
            )


def _honest(interface: str, rate: int | None) -> list[str]:
    """Settings for the kernel's counters to count what a cable would carry, before it is up.

    Without link-local addresses it sends no frame by itself. One segment is one frame with its
    headers. A fast link could not hold its rate so: it passes segments of up to 64 KB, of which
    only one header is counted.
    """
    lines = [f"link set {interface} addrgenmode none"]
    if rate is not None and rate <= _FRAMED:
        lines.append(f"link set {interface} gso_max_segs 1")
    return lines


def _port(host: int) -> str:
    return f"port{host}"


def _shaper(interface: str, rate: int) -> str:
    """A token bucket. The bucket holds 2 ms, the queue 50 ms, each a few frames at the least."""
    a_second = rate / 8
    bucket = max(round(a_second * 0.002), 4 * _FRAME)
    queue = bucket + max(round(a_second * _QUEUE), 16 * _FRAME)
    return f"qdisc add dev {interface} root tbf rate {rate}bit burst {bucket} limit {queue}"
