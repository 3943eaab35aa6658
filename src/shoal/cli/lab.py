"""`shoal lab`: several hosts on one machine, and a job across them."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from shoal.errors import ShoalError

if TYPE_CHECKING:
    from shoal.lab import Lab, Outcome

_ABOUT = """\
Start COMMAND once on each of N hosts, as one job under torchrun's variables. The hosts are
network namespaces on one switch, each with its own address, link, processes and shared memory;
they reach each other and nothing else, and share this machine's files and clock. Run it as root,
or as `unshare -Urnm shoal lab run ...`. Everything is gone when it ends, however it ends.

  shoal lab run --hosts 4 --link 20mbit -- shoal train --steps 20

What host 0 prints goes where it would go without a lab; the others' lines go to standard error.
The exit status is that of the host that failed first."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    run = actions.add_parser(
        "run", help="run a command on every host of a lab", description=_ABOUT,
        usage="shoal lab run [options] -- COMMAND [ARGUMENT ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    run.add_argument("--hosts", type=int, default=2, metavar="N", help="how many hosts (2)")
    run.add_argument("--link", metavar="RATE",
                     help="rate of each host's link in each direction, from 8kbit to 100gbit; "
                          "unlimited unless given")  # fmt: skip
    run.add_argument("--cpu", type=float, metavar="CORES",
                     help="CPU time of each host in cores, such as 0.5; needs a control group "
                          "that can be written")  # fmt: skip
    run.add_argument("--delay", metavar="TIME",
                     help="delay from host to host, one way, such as 25ms; a relay in user space "
                          "holds the frames back, which needs /dev/net/tun")  # fmt: skip
    run.add_argument("--json", action="store_true",
                     help="print the summary as one line of JSON on standard output")  # fmt: skip
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND",
                     help="what every host runs, and its arguments")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Build the lab, run the command, and say what crossed the links."""
    from shoal.lab import Lab

    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise ShoalError("there is no command for the hosts; say `shoal lab run -- COMMAND`")
    with Lab(hosts=args.hosts, link=args.link, cpu=args.cpu, delay=args.delay) as lab:
        outcome = lab.run(command)
    sys.stdout.flush()
    if args.json:
        print(json.dumps(_summary(lab, outcome)))
    else:
        print(_table(lab, outcome), file=sys.stderr)
    return outcome.status


def _summary(lab: Lab, outcome: Outcome) -> dict[str, Any]:
    return {
        "hosts": [
            {
                "host": host,
                "address": lab.addresses[host],
                "received_bytes": received,
                "sent_bytes": sent,
                "received_bits_per_second": 8 * received / outcome.seconds,
                "sent_bits_per_second": 8 * sent / outcome.seconds,
                "exit": outcome.codes[host],
            }
            for host, (received, sent) in outcome.traffic.items()
        ],
        "seconds": outcome.seconds,
        "status": outcome.status,
        "link_bits_per_second": lab.rate,
        "delay_seconds": lab.delay,
        "cpu_cores": lab.cpu,
    }


def _table(lab: Lab, outcome: Outcome) -> str:
    from shoal.lab.units import show_rate

    limits = [f"link {show_rate(lab.rate)}" if lab.rate else "link without a limit"]
    limits += [f"delay {1000 * lab.delay:g} ms from host to host"] if lab.delay else []
    limits += [f"{lab.cpu:g} of a core"] if lab.cpu else []
    noun = "host" if lab.hosts == 1 else "hosts"
    lines = [
        f"lab: {lab.hosts} {noun}, {', '.join(limits)}; {outcome.seconds:.1f} s",
        f"{'host':>6}  {'address':<12}{'received':>12}{'mean rate':>14}{'sent':>12}"
        f"{'mean rate':>14}  ended",
    ]
    for host, (received, sent) in outcome.traffic.items():
        cells = [f"{host:>6}  {lab.addresses[host]:<12}"]
        for amount in (received, sent):
            cells.append(f"{amount / 1e6:>9.3f} MB{show_rate(8 * amount / outcome.seconds):>14}")
        lines.append("".join(cells) + f"  {_ending(outcome.codes[host])}")
    return "\n".join(lines)


def _ending(code: int) -> str:
    import signal

    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return "well" if code == 0 else f"with status {code}"
