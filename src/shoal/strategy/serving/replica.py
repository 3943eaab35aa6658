"""A worker's copy of the parameters on the servers: brought once, pulled again and again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shoal.codec.base import Codec
from shoal.codec.choice import Choice
from shoal.exchange.coded import Coder
from shoal.exchange.layout import lay_out
from shoal.exchange.portions import portions_of
from shoal.strategy.serving import protocol as p
from shoal.strategy.serving.link import Link
from shoal.strategy.step_counts import place_step_counts
from shoal.wire.frames import LONGEST_PAYLOAD
from shoal.wire.messages import as_tensor


class Replica:
    """All trainable parameters of a worker's model, as one flat buffer."""

    def __init__(
        self, named: Sequence[tuple[str, nn.Parameter]], codec: Codec | Choice, servers: int
    ) -> None:
        """Moves the parameters into the flat buffer."""
        self._parameters = [parameter for _, parameter in reversed(named)]
        self.layout = lay_out(named, servers)
        self.portions, self.coded = portions_of(self.layout, codec, servers)
        self.weights = self.flat()
        for parameter, view in zip(self._parameters, self.layout.views(self.weights), strict=True):
            view.copy_(parameter.detach())
            parameter.data = view
        self.forget()

    def flat(self) -> Tensor:
        """A zeroed flat buffer beside the parameters."""
        first = self._parameters[0]
        return torch.zeros(self.layout.elements, dtype=first.dtype, device=first.device)

    def forget(self) -> None:
        """Begin anew with other servers: nothing is owed, and no version is here."""
        self.have = [-1] * len(self.portions)
        """By server, the version of its parameters that is here; -1: none, or no whole one."""
        self._coder: Coder | None = None
        if self.coded is not None:
            self._coder = self.coded.coder(self.layout.elements)

    def push(self, link: Link, lease: int, bucket: int, flat: Tensor) -> None:
        """Send each server its piece of a bucket; `flat` must not change until `link.flush`."""
        for server, portion in enumerate(self.portions):
            piece = portion.pieces[bucket]
            if not piece.length:
                continue
            if self.coded is None:
                payload = flat[slice(*piece)]
            else:
                assert self._coder is not None
                payload = self.coded.encode(bucket, server, flat, self._coder)
            header = p.Part(worker=link.worker, epoch=link.epoch, lease=lease, bucket=bucket)
            link.push(server, header, payload)

    def bring(self, link: Link, model: nn.Module, described: p.Model) -> None:
        """Send the weights, and what does not train, to a run that is new."""
        for server, portion in enumerate(self.portions):
            for bucket, piece in enumerate(portion.pieces):
                if piece.length:
                    header = p.Initial(worker=link.worker, epoch=link.epoch, bucket=bucket)
                    link.push(server, header, self.weights[slice(*piece)])
        named = dict(model.named_parameters()) | dict(model.named_buffers())
        for number, constant in enumerate(described.constants):
            raw = named[constant.name].detach().contiguous().cpu().flatten().view(torch.uint8)
            for start in range(0, len(raw), LONGEST_PAYLOAD):
                fixed = p.Fixed(worker=link.worker, epoch=link.epoch, number=number, start=start)
                link.push(0, fixed, raw[start : start + LONGEST_PAYLOAD])
        link.flush()

    def pull(self, link: Link) -> None:
        """Take over the servers' present parameters."""
        for server in range(link.servers):
            self._pull_from(link, server)

    def _pull_from(self, link: Link, server: int) -> None:
        have, first, versions = self.have[server], 0, set[int]()
        self.have[server] = -1  # until all of it is here
        while first >= 0:
            header = p.Pull(worker=link.worker, epoch=link.epoch, have=have, first=first)
            first = -1
            for got, payload in link.pull(server, header):
                assert isinstance(got, p.Weights | p.Change)
                if got.bucket < 0:
                    first = got.rest if isinstance(got, p.Weights) else -1
                    versions.add(got.version)
                    continue
                mine = self.weights[slice(*self.portions[server].pieces[got.bucket])]
                if isinstance(got, p.Weights):
                    mine.copy_(as_tensor(payload, mine.dtype, len(mine)))
                else:
                    assert self.coded is not None
                    raw = as_tensor(payload, torch.uint8, self.coded.length(got.bucket, server))
                    change = torch.empty_like(mine)
                    self.coded.decode(got.bucket, server, raw, change)
                    mine.add_(change)
        if len(versions) == 1:  # changes follow on one version, and not on a mixture
            self.have[server] = versions.pop()

    def pull_state(self, link: Link, optimizer: torch.optim.Optimizer) -> None:
        """Take over what the servers' optimizer keeps, at the border of a phase."""
        flats: dict[str, Tensor] = {}
        numbers: dict[str, float] = {}
        for server, portion in enumerate(self.portions):
            first = 0
            while first >= 0:
                header = p.Pull(worker=link.worker, epoch=link.epoch, state=True, first=first)
                first = -1
                for got, payload in link.pull(server, header):
                    assert isinstance(got, p.State)
                    if not got.key:
                        first = got.rest
                    elif got.bucket < 0:
                        numbers[got.key] = got.number
                    else:
                        flat = flats.setdefault(got.key, self.flat())
                        mine = flat[slice(*portion.pieces[got.bucket])]
                        mine.copy_(as_tensor(payload, mine.dtype, len(mine)))
        views = {key: self.layout.views(flat) for key, flat in flats.items()}
        for index, parameter in enumerate(self._parameters):
            state: dict[str, Any] = {key: torch.tensor(n) for key, n in numbers.items()}
            state |= {key: each[index].clone() for key, each in views.items()}
            if state:
                optimizer.state[parameter] = state
        place_step_counts(optimizer)
