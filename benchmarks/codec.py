"""How fast each codec encodes and decodes, beside a plain copy of the same values.

One thread, units of 256 Ki values (1 MiB of fp32, as the exchange cuts them), sixteen units in
turn so that they come from beyond the second-level cache. Each round goes through all codecs
and a copy. A round's time is the median of its units, in the thread's own processor time, so
that what else the machine does disturbs it little; figures are medians of rounds, in MB of
fp32 input a second. The loss is |x - sent| / |x| for normal values, once, without feedback.

Goal: encode and decode together at least 300 MB/s, PowerSGD left out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from measure import arguments, table, write
from torch import Tensor

from shoal.codec.base import Codec, Spec, State
from shoal.codec.catalogue import CODECS, codec_named
from shoal.codec.choice import codec_for
from shoal.strategy.presets import named

SPEC = Spec("unit", (512, 512))
UNITS = 16
BYTES = 4 * 512 * 512
GOAL = 300
NO_GOAL = {"powersgd"}
WARM_UP = 2


def main() -> None:
    """Measure every codec of the catalogue."""
    args = arguments(__doc__)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    units = [torch.randn(SPEC.shape, generator=generator) for _ in range(UNITS)]
    codecs = {**{name: codec_named(name) for name in CODECS}, "sparse_loco": _of_sparse_loco()}
    contestants = {name: _Contestant(codec) for name, codec in codecs.items()}
    target = torch.empty_like(units[0])
    seconds: dict[str, dict[str, list[float]]] = {
        "copy": {"copy": []},
        **{name: {"encode": [], "decode": []} for name in codecs},
    }
    for number in range(WARM_UP + (5 if args.quick else 30)):
        elapsed = [("copy", "copy", _timed(target.copy_, units))]
        for name, contestant in contestants.items():
            elapsed += [
                (name, "encode", contestant.encode(units)),
                (name, "decode", contestant.decode(target)),
            ]
        for name, what, took in elapsed if number >= WARM_UP else []:
            seconds[name][what].append(took)
    copy = _speed(seconds["copy"]["copy"])
    cases = [_case(name, contestants[name], seconds[name], units) for name in codecs]
    table(
        [
            "codec",
            "bytes/value",
            "loss",
            "encode MB/s",
            "decode MB/s",
            "both MB/s",
            "copy/both",
            "goal",
        ],
        [
            [
                case["codec"],
                f"{case['bytes_a_value']:.4f}",
                f"{case['loss']:.4f}",
                *(f"{case[what]:,.0f}" for what in ("encode", "decode", "both")),
                copy / case["both"],
                "-" if case["codec"] in NO_GOAL else GOAL,
            ]
            for case in cases
        ],
    )
    print(f"\na copy: {copy:,.0f} MB/s")
    write("codec", args, {"copy": copy, "goal": GOAL, "cases": cases, "seconds": seconds})


def _of_sparse_loco() -> Codec:
    """What that preset sends large parameters with, once in many steps: half of the values."""
    codec = named("sparse_loco").codec
    assert codec is not None
    return codec_for(codec, SPEC)


class _Contestant:
    """A codec with its payloads and states, one of each a unit."""

    def __init__(self, codec: Codec) -> None:
        size = codec.wire_bytes(SPEC)
        self.codec = codec
        self.payloads = [torch.empty(size, dtype=torch.uint8) for _ in range(UNITS)]
        self.states: list[State] = [codec.init(SPEC) for _ in range(UNITS)]

    def encode(self, units: list[Tensor]) -> float:
        def one(number: int) -> None:
            payload, state = self.payloads[number], self.states[number]
            self.states[number] = self.codec.encode(units[number], payload, state)

        return _timed(one, range(UNITS))

    def decode(self, target: Tensor) -> float:
        return _timed(lambda payload: self.codec.decode(payload, target), self.payloads)


def _timed(run: Callable[[Any], Any], items: Iterable[Any]) -> float:
    """Processor seconds of the median item."""
    took = []
    for item in items:
        start = time.thread_time()
        run(item)
        took.append(time.thread_time() - start)
    return statistics.median(took)


def _speed(seconds: list[float]) -> float:
    return BYTES / 1e6 / statistics.median(seconds)


def _case(
    name: str, contestant: _Contestant, seconds: dict[str, list[float]], units: list[Tensor]
) -> dict[str, Any]:
    both = [sum(pair) for pair in zip(seconds["encode"], seconds["decode"], strict=True)]
    payload = torch.empty_like(contestant.payloads[0])
    contestant.codec.encode(units[0], payload, contestant.codec.init(SPEC))
    sent = torch.empty_like(units[0])
    contestant.codec.decode(payload, sent)
    return {
        "codec": name,
        "bytes_a_value": len(payload) * 4 / BYTES,
        "loss": float((units[0] - sent).norm() / units[0].norm()),
        "encode": _speed(seconds["encode"]),
        "decode": _speed(seconds["decode"]),
        "both": _speed(both),
    }


if __name__ == "__main__":
    main()
