"""Everything that defines a run, in one tree; each table lies beside the part it configures."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from shoal.config import flatten, suggestion
from shoal.data.config import DataConfig
from shoal.errors import ShoalError
from shoal.models.config import ModelConfig
from shoal.strategy.options import HogwildConfig, LocalConfig, build_strategy, resolve_local
from shoal.strategy.parts import Strategy, Workers
from shoal.strategy.servers import ServersConfig, resolve_servers
from shoal.train.optimizer import OptimizerConfig, resolve_optimizer
from shoal.train.precision import PRECISIONS
from shoal.train.records import RecordsConfig
from shoal.train.schedule import ScheduleConfig, resolve_schedule

WIRES = ("auto", "shared_memory", "collective")
DEVICES = ("auto", "cpu", "cuda")
DEFAULT_STEPS = 225


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How many samples a step consumes, and in which pieces."""

    global_batch: int = 16
    """Samples of one step, over all workers."""
    micro_batch: int = 2
    """Samples of one leaf: what one forward and backward pass holds."""

    @property
    def leaves(self) -> int:
        """Leaves of a full step; the most workers that a run can use."""
        return self.global_batch // self.micro_batch


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """How long the run is: one of the three, or 225 steps where none is set."""

    steps: int | None = None
    """Length of the run in steps."""
    tokens: int | None = None
    """Length of the run in tokens, rounded up to whole samples; the last step may be smaller."""
    epochs: int | None = None
    """Length of the run in passes over the data; the last step may be smaller."""

    def samples(self, *, global_batch: int, sequence_length: int, epoch: int) -> int:
        """The length of the run in samples, where `epoch` samples are one pass."""
        if self.tokens is not None:
            return math.ceil(self.tokens / sequence_length)
        if self.epochs is not None:
            return self.epochs * epoch
        return (self.steps or DEFAULT_STEPS) * global_batch


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the run is saved, and how much of it is kept."""

    save_every: int = 100
    """Steps between two checkpoints; the end of the run is always saved. 0: only the end."""
    keep: int = 2
    """Newest checkpoints that stay on disk."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When the held-out samples are measured, and how many."""

    every: int = 100
    """Steps between two evaluations; the end of the run is always measured. 0: only the end."""
    samples: int = 64
    """Held-out samples of one evaluation, over all workers; fewer where there are fewer."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run. Two runs with equal configurations, bar `workers` and `wire`, have equal weights."""

    recipe: str = "lm"
    """What is trained: a file of `shoal/recipes`."""
    strategy: str = "ddp"
    """How workers agree, and after a + how it looks on the wire: `ddp`, `diloco`, `ddp+bf16`."""
    wire: str = "auto"
    """How bytes cross: `shared_memory` (one host), `collective` (torch.distributed), or `auto`."""
    workers: int = 1
    """Processes that share the work. The result does not depend on it."""
    shares: str = "equal"
    """How much of each step each worker takes: `equal`, `auto` (in proportion to the speeds that
    are measured at the start), or a number for each worker, as in `3,1`. The result does not
    depend on it; the strategy must be exact."""
    threads: int = 1
    """Threads of each worker's computations. The last bits of a result may depend on it."""
    device: str = "auto"
    """Where workers compute: `cpu`, `cuda`, or `auto` (cuda where there is one)."""
    deterministic: bool = True
    """On CUDA devices, compute what gives the same bits each time, which can take longer. A model
    with an operation that cannot is refused; false lets it train, without that promise."""
    precision: str = "fp32"
    """Number format of the forward pass: `fp32`, or `bf16` (autocast)."""
    seed: int = 0
    """Determines initial weights, the order of samples, and all random states."""
    clip: float | None = 1.0
    """Largest global norm of the gradient; longer ones are scaled down to it. none: no clipping."""
    timeout: float = 300.0
    """Seconds after which a worker that waits for a peer gives the run up."""
    data: DataConfig = field(default_factory=DataConfig)
    """What is read: the corpus, its tokenizer, and the length of a sample."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network: built in and sized here, or a Hugging Face folder."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """Samples of a step and of a leaf."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    """The length of the run."""
    local: LocalConfig = field(default_factory=LocalConfig)
    """Local steps between agreements, for the strategies that take them."""
    hogwild: HogwildConfig = field(default_factory=HogwildConfig)
    """How workers update one shared copy, for the strategy that does."""
    servers: ServersConfig = field(default_factory=ServersConfig)
    """Parameter servers, for the strategies that have them."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The update rule and its constants."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """The learning rate over the run."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When the run is saved."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """When held-out loss is measured."""
    records: RecordsConfig = field(default_factory=RecordsConfig)
    """Where figures are written beside the JSON lines."""


def resolve(config: RunConfig) -> RunConfig:
    """`config` checked, and with the defaults of its optimizer and schedule filled in.

    Resolving twice is resolving once. What only the data can tell (an empty corpus, the
    samples of an epoch) is checked where the data is opened.

    Raises:
        ShoalError: naming the key, its value, and what is allowed.
    """
    validate(config)
    return dataclasses.replace(
        config,
        local=resolve_local(config.strategy, config.local),
        servers=resolve_servers(strategy_of(config), config.servers),
        optimizer=resolve_optimizer(config.optimizer),
        schedule=resolve_schedule(config.schedule),
    )


def strategy_of(config: RunConfig) -> Strategy:
    """The strategy with everything that the run sets of it. Raises ShoalError."""
    return build_strategy(config.strategy, config.local, config.hogwild, config.servers)


def validate(config: RunConfig) -> None:
    """Refuse a configuration that no run can follow, naming the key.

    The recipe's name is left to `shoal.recipes`, which lies above this floor.
    """
    _known("wire", config.wire, WIRES)
    _known("device", config.device, DEVICES)
    if not config.deterministic and config.device == "cpu":
        raise ShoalError(
            "deterministic has no effect with device cpu, where all is; leave it unset"
        )
    _known("precision", config.precision, PRECISIONS)
    resolve_optimizer(config.optimizer)
    resolve_schedule(config.schedule)
    _check_numbers(config)
    _check_batch(config)
    lengths = [key for key, value in dataclasses.asdict(config.budget).items() if value is not None]
    if len(lengths) > 1:
        raise ShoalError(
            f"{' and '.join(f'budget.{key}' for key in lengths)} are set, "
            "but a run has one length; set the others to none"
        )
    strategy_of(config)
    parts_of(config)
    if config.hogwild.moments and resolve_optimizer(config.optimizer).momentum == 0:
        raise ShoalError(
            "hogwild.moments has no effect with sgd without momentum, which keeps nothing; "
            "leave it unset"
        )


def parts_of(config: RunConfig) -> tuple[float, ...]:
    """The numbers of `shares`; none where they are equal, or still to be measured.

    Raises ShoalError where they are no numbers, or the strategy has no use for them.
    """
    if config.shares == "equal":
        return ()
    strategy = strategy_of(config)
    if not strategy.exact or not isinstance(strategy.owner, Workers):
        raise ShoalError(
            f"shares is {config.shares!r}, but strategy {config.strategy!r} cannot deal a step "
            "unequally; use an exact one (ddp, zero1), or leave shares at equal"
        )
    if config.shares == "auto":
        return ()
    try:
        parts = tuple(float(word) for word in config.shares.split(","))
    except ValueError:
        parts = ()
    if len(parts) != config.workers or not all(math.isfinite(p) and p > 0 for p in parts):
        raise ShoalError(
            f"shares is {config.shares!r}, but must be equal, auto, or {config.workers} positive "
            "numbers with commas, one for each worker"
        )
    return parts


def budget_settings(unit: str, value: int) -> list[str]:
    """Settings that make `value` `unit` (steps, tokens, epochs) the run's only length.

    A flag replaces what a file says in another unit, so the others are unset.
    """
    units = [unit_.name for unit_ in dataclasses.fields(BudgetConfig)]
    return [f"budget.{each}={value if each == unit else 'none'}" for each in units]


def _known(key: str, value: str, names: Sequence[str]) -> None:
    if value not in names:
        near = suggestion(value, names)
        raise ShoalError(f"{key} is {value!r}, but must be one of {', '.join(names)}{near}")


_POSITIVE = (
    *("workers", "threads", "timeout", "clip", "batch.global_batch", "batch.micro_batch"),
    *("budget.steps", "budget.tokens", "budget.epochs", "checkpoint.keep"),
    *("evaluation.samples", "records.every"),
)
_NOT_NEGATIVE = ("seed", "checkpoint.save_every", "evaluation.every")


def _check_numbers(config: RunConfig) -> None:
    values = flatten(config)
    for key in (*_POSITIVE, *_NOT_NEGATIVE):
        value = values[key]
        if value is None:
            continue
        assert isinstance(value, int | float)
        least = "above 0" if key in _POSITIVE else "0 or more"
        if not math.isfinite(value) or value < 0 or (value == 0 and key in _POSITIVE):
            raise ShoalError(f"{key} must be a finite number, {least}, not {value}")
    # An order of samples is a function of 64 bits of seed, as torch's generators are.
    if config.seed >= 2**63:
        raise ShoalError(f"seed must be below 2**63, not {config.seed}")


def _check_batch(config: RunConfig) -> None:
    batch = config.batch
    if batch.global_batch % batch.micro_batch:
        raise ShoalError(
            f"batch.global_batch ({batch.global_batch}) must be a multiple of "
            f"batch.micro_batch ({batch.micro_batch})"
        )
    if config.workers > batch.leaves:
        raise ShoalError(
            f"workers is {config.workers}, but a step has only {batch.leaves} leaves "
            f"(batch.global_batch {batch.global_batch} / batch.micro_batch {batch.micro_batch}); "
            "use fewer workers or a smaller batch.micro_batch"
        )
