"""What workers and servers say to each other: the headers of the message wire.

A worker's way through a run:

    Hello  ->  Welcome         who am I, where are the servers
    Initial ...                the first worker of a new run brings the weights
    Begin  ->  Go              the plan of the run; the first lease
    Pull   ->  Weights ...     the parameters to compute from, from every server
    Part ...                   the lease's gradient, a bucket a message, to every server
    Done   ->  Go | Measure | Over     its loss and count; the next lease

The first server is the coordinator. Between it and the others:

    Register  ->  Serve        a server is there; the model and its optimizer
    Arrived                    all parts of a contribution are here, and finite
    Drop                       forget contributions
    Prepare  ->  Norms         add up a commit's contributions; the norms of the mean's blocks
    Apply  ->  Applied         scale the mean, and step
    Save  ->  Saved            write a checkpoint's files
    Failed                     a server cannot go on
"""

from __future__ import annotations

from typing import Any

import msgspec

from shoal.strategy.serving.leases import Lease
from shoal.wire.ledger import Purpose


class Header(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Of every message."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model as servers see it: its trainable parameters, and the optimizer over them."""

    names: list[str]
    shapes: list[list[int]]
    dtype: str
    """torch's name, such as `float32`."""
    optimizer: str
    """A class of torch.optim by name."""
    groups: list[Group]
    clip: float | None
    constants: list[Constant]
    """What does not train, for the checkpoint."""


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter group of the optimizer."""

    names: list[str]
    options: dict[str, Any]


class Constant(msgspec.Struct, frozen=True, kw_only=True):
    """A buffer, or a parameter that does not train."""

    name: str
    shape: list[int]
    dtype: str
    bytes: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Which samples the run consists of, and how they are cut. Equal on all workers."""

    seed: int
    length: int
    global_batch: int
    micro_batch: int
    end: int


class Member(Header, frozen=True, kw_only=True):
    """Of every message of a worker that has been welcomed."""

    worker: int
    epoch: int
    """Of its membership: a message of an older one is refused."""


# Worker to server


class Ask(Header, frozen=True, kw_only=True):
    """What is trained here?"""


class Hello(Header, frozen=True, kw_only=True):
    """A worker wants to join. The payload is its `Model`.

    `rank` is the number it would like, or -1.
    """

    rank: int
    strategy: str
    about: dict[str, str] = {}
    """What else all workers must agree on, such as the data's fingerprint, by its name."""


class Initial(Member, frozen=True, kw_only=True):
    """The new run's weights, a bucket's piece a message."""

    purpose: Purpose = "parameters"
    bucket: int


class Fixed(Member, frozen=True, kw_only=True):
    """Bytes from `start` on of a constant, by its number."""

    purpose: Purpose = "parameters"
    number: int
    start: int


class Begin(Member, frozen=True, kw_only=True):
    """Ready to compute."""

    plan: Plan


class Part(Member, frozen=True, kw_only=True):
    """A bucket of a lease's contribution."""

    purpose: Purpose = "gradient"
    lease: int
    bucket: int


class Done(Member, frozen=True, kw_only=True):
    """A lease is computed and all its parts are sent."""

    lease: int
    total: float
    """Loss sum over its targets."""
    count: int
    options: list[dict[str, Any]]
    """Of the optimizer's groups at this step: rates and the like."""
    seconds: float
    """Spent on it."""
    spent: dict[str, float] = {}
    """Since the last one, waiting for this lease included, by activity: computing, exchanging,
    waiting, data."""
    sent: int = 0
    received: int = 0
    """Bytes since the last one."""


class Beat(Member, frozen=True, kw_only=True):
    """Still computing."""


class Pull(Member, frozen=True, kw_only=True):
    """Send me the parameters, or (`state`) what the optimizer keeps of them."""

    have: int = -1
    """The version that this worker has."""
    first: int = 0
    """The first bucket wanted; of what the optimizer keeps, the first piece."""
    state: bool = False


class Pulled(Member, frozen=True, kw_only=True):
    """What was to be measured is here; commits may go on."""


class Measured(Member, frozen=True, kw_only=True):
    """Held-out metrics."""

    version: int
    metrics: dict[str, float]


class Leave(Member, frozen=True, kw_only=True):
    """This worker goes, in order."""


class Stop(Member, frozen=True, kw_only=True):
    """Let the whole run stop, and say why."""

    reason: str


# Server to worker


class Configured(Header, frozen=True, kw_only=True):
    """The run's configuration (TOML), and its folder for servers that join."""

    text: str
    folder: str


class Welcome(Header, frozen=True, kw_only=True):
    """A worker is a member now."""

    worker: int
    epoch: int
    servers: list[str]
    """Addresses, the coordinator's first."""
    initialise: bool
    """Whether this worker has to bring the weights."""
    position: int
    """Samples committed so far."""
    beat: float
    """Seconds between two signs of life, at most."""


class Go(Header, frozen=True, kw_only=True):
    """Compute this, from parameters of its version or newer."""

    lease: Lease
    version: int
    local_batch: int = 0
    """Samples of one local step, of a lease of local steps."""


class Measure(Header, frozen=True, kw_only=True):
    """Measure this version on held-out samples."""

    version: int


class Over(Header, frozen=True, kw_only=True):
    """The run has ended."""

    finished: bool
    failed: bool = False
    reason: str = ""


class Stale(Header, frozen=True, kw_only=True):
    """The membership has ended: this worker was taken for dead, or the server is another."""


class Weights(Header, frozen=True, kw_only=True):
    """A server's piece of a bucket, at a version; `bucket` -1 and no payload: that was all, or
    all that its queue took, and `rest` is the bucket to ask from."""

    purpose: Purpose = "parameters"
    version: int
    bucket: int
    rest: int = -1


class Change(Header, frozen=True, kw_only=True):
    """What a commit has changed, coded: a server's piece of a bucket."""

    purpose: Purpose = "parameters"
    version: int
    bucket: int


class State(Header, frozen=True, kw_only=True):
    """A piece of what the optimizer keeps; `bucket` -1 and no payload: that was all."""

    purpose: Purpose = "parameters"
    key: str
    bucket: int
    number: float = 0.0
    """Where it is one number for each parameter."""
    rest: int = -1
    """Of the last message: the piece to ask from, where its queue took no more."""


# Server to server


class Register(Header, frozen=True, kw_only=True):
    """A server is there."""

    index: int
    address: str


class Serve(Header, frozen=True, kw_only=True):
    """The model, in the payload; `resume` names a checkpoint's folder."""

    servers: int
    resume: str | None


class Opened(Header, frozen=True, kw_only=True):
    """The shard is there: from here on workers may speak to this server."""

    index: int
    problem: str | None = None


class Served(Header, frozen=True, kw_only=True):
    """It has its weights: those of a checkpoint, or what the membership `epoch` has brought."""

    index: int
    epoch: int | None


class Arrived(Header, frozen=True, kw_only=True):
    """A contribution is here."""

    index: int
    lease: int
    finite: bool


class Drop(Header, frozen=True, kw_only=True):
    """Forget these leases' contributions."""

    leases: list[int]


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """A contribution's part in a commit."""

    lease: int
    worker: int
    start: int
    stop: int
    """Leaves of the step: a node of its tree."""
    weight: float = 1.0
    """Below 1 where staleness is damped."""
    count: int
    """Targets behind it."""


class Prepare(Header, frozen=True, kw_only=True):
    """Add these up and divide by the count."""

    number: int
    """The version that it makes."""
    leaves: int
    """Of the step, where the sum follows its tree; 0: in this order."""
    shares: list[Share]
    count: int
    delta: bool = False
    """Whether these are deltas of local steps, which the outer optimizer takes."""
    members: int
    """Workers at this moment."""
    options: list[dict[str, Any]]
    """Of the optimizer's groups."""


class Norms(Header, frozen=True, kw_only=True):
    """Norms of the mean's blocks on this server, float64 in the payload."""

    index: int
    number: int


class Apply(Header, frozen=True, kw_only=True):
    """Step with the mean, scaled."""

    number: int
    factor: float


class Applied(Header, frozen=True, kw_only=True):
    """Stepped."""

    index: int
    number: int


class Save(Header, frozen=True, kw_only=True):
    """Write this version's files into the partial folder of a step."""

    number: int
    """The step."""


class Saved(Header, frozen=True, kw_only=True):
    """Written, or why not."""

    index: int
    number: int
    files: list[dict[str, Any]]
    problem: str | None = None


class Failed(Header, frozen=True, kw_only=True):
    """A server cannot go on: its disk is full, say. The run ends with this."""

    index: int
    problem: str


class Quit(Header, frozen=True, kw_only=True):
    """The run has ended."""


TO_SERVER = (
    Ask | Hello | Initial | Fixed | Begin | Part | Done | Beat | Pull | Pulled | Measured
    | Leave | Stop | Register | Serve | Opened | Served | Arrived | Drop | Prepare | Norms | Apply
    | Applied | Save | Saved | Failed | Quit
)  # fmt: skip
TO_WORKER = Configured | Welcome | Go | Measure | Over | Stale | Weights | Change | State
