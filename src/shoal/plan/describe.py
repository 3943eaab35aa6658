"""What a run will be, before it starts: the answer of `shoal train --dry-run`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from shoal.config import to_toml
from shoal.exchange.layout import Layout, lay_out
from shoal.exchange.tree import share
from shoal.models.size import skeleton
from shoal.plan.agreement import bytes_sent_a_step, held_for_agreement, is_sharded, sums_by_tree
from shoal.plan.leaf import LeafProbe, LeafSize, model_bytes
from shoal.plan.memory import decoder_activations, expected_memory, moments
from shoal.plan.serving import ServingPlan, plan_serving
from shoal.strategy.parts import Servers, Strategy, Workers
from shoal.strategy.phases import phases_of, switches
from shoal.tasks.base import Task
from shoal.tasks.language_model import LanguageModel
from shoal.train.config import RunConfig, strategy_of
from shoal.train.device import device_of


class Beginning(NamedTuple):
    """A strategy's first phase, where it has one."""

    strategy: str
    steps: int
    bytes_a_step: int


@dataclass(frozen=True, kw_only=True)
class Description:
    """The arithmetic of a run. Bytes are of the fullest worker."""

    config: RunConfig
    samples: int
    """In the training split."""
    vocab_size: int | None
    """Of a language model."""
    unit: str
    """What the task's targets are, in the plural."""
    parameters: int
    trained: int
    """Parameters that training changes."""
    leaf: LeafSize | None
    """As measured, where no formula says what a leaf takes."""
    steps: int
    last_step: int
    """Samples of the last step."""
    leaves_by_worker: list[int]
    bytes_a_step: int
    """What the busiest worker sends in a full step, counts and norms left out."""
    beginning: Beginning | None
    """What it sends before."""
    serving: ServingPlan | None
    """Of a run on parameter servers."""
    program: int
    """Bytes of a process before it holds a model."""
    memory: dict[str, int]
    """By what it holds."""

    def text(self) -> str:
        """For a person to read."""
        lines = [*self._arithmetic(), *self._memory(), *self._servers()]
        return "\n".join([to_toml(self.config), *lines])

    def _arithmetic(self) -> list[str]:
        batch, length = self.config.batch, self.config.data.sequence_length
        leaves = " + ".join(map(str, self.leaves_by_worker))
        last = (
            ""
            if self.last_step == batch.global_batch
            else f", the last of {self.last_step} samples"
        )
        tokens = f" = {batch.global_batch * length:,} tokens" if self.vocab_size else ""
        words = f" (vocabulary {self.vocab_size:,})" if self.vocab_size else ""
        if self.trained != self.parameters:
            words += f", of which {self.trained:,} are trained"
        return [
            f"# global batch  {batch.global_batch} samples = {batch.leaves} leaves x "
            f"{batch.micro_batch} samples{tokens}",
            f"# workers       {self.config.workers}, with {leaves} leaves each step"
            + (" at equal speeds" if self.free else ""),
            f"# steps         {self.steps:,}{last} ({self.samples:,} samples in an epoch)",
            f"# parameters    {self.parameters:,}{words}",
            f"# wire          {_megabytes(self.bytes_a_step)} sent a step by each worker"
            + (f", and {_megabytes(self.serving.worker_receives)} received" if self.serving
               else "")
            + (f", after {_megabytes(begin.bytes_a_step)} in each of the first {begin.steps:,} "
               f"({begin.strategy})" if (begin := self.beginning) else ""),
        ]  # fmt: skip

    @property
    def free(self) -> bool:
        """Whether workers take their parts of a step as they come."""
        return not isinstance(strategy_of(self.config).owner, Workers)

    def _memory(self) -> list[str]:
        lines = [f"# memory        {_told(self.memory, 'at the peak of a worker')}"]
        if self.leaf is not None:
            lines.append(f"# a leaf        {self.leaf.bytes / 1e6:,.0f} MB, measured with "
                         f"{self.leaf.samples} of the largest samples ({self.leaf.targets:,} "
                         f"{self.unit})")  # fmt: skip
        return lines

    def _servers(self) -> list[str]:
        plan = self.serving
        if plan is None:
            return []
        memory = {"this program": self.program, **plan.server_memory}
        return [
            f"# servers       {plan.servers}, each with {plan.server_receives / 1e6:.1f} MB "
            f"received and {plan.server_sends / 1e6:.1f} MB sent a step, in "
            f"{plan.contributions:.2g} contribution{'s' * (plan.contributions != 1)}",
            f"# memory        {_told(memory, 'at the peak of a server')}",
        ]


def _megabytes(size: int) -> str:
    """Local steps send some kB a step."""
    return f"{size / 1e6:.{1 if size >= 1e6 else 4}f} MB"


def _told(memory: dict[str, int], what: str) -> str:
    parts = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in memory.items())
    return f"{sum(memory.values()) / 1e6:,.0f} MB {what} ({parts})"


def describe(
    config: RunConfig,
    task: Task,
    *,
    program: int,
    model: nn.Module | None = None,
    leaf: LeafSize | None = None,
) -> Description:
    """Work a run out without training it; `program` is what `program_bytes` measured.

    A leaf of the built-in language model follows from a formula; of any other, and where `leaf`
    (with the `model` that it was measured with) is given, it is measured.

    Raises ShoalError where it could not start.
    """
    strategy, text = strategy_of(config), task if isinstance(task, LanguageModel) else None
    if leaf is None and text is not None and text.model_config.path is None:
        model = skeleton(text.model_config, text.tokenizer.vocab_size)
    elif leaf is None or model is None:
        probe = LeafProbe(config, task)
        model, leaf = probe.model, probe.leaf(config.batch.micro_batch)
        program = max(program, probe.program)
    owner, leaves = strategy.owner, config.batch.leaves
    owners = owner.count if isinstance(owner, Servers) else config.workers
    layout = lay_out([(n, p) for n, p in model.named_parameters() if p.requires_grad], owners)
    samples = len(task.samples("train"))
    end = config.budget.samples(
        global_batch=config.batch.global_batch,
        sequence_length=config.data.sequence_length,
        epoch=samples,
    )
    spans = [share(leaves, config.workers, rank) for rank in range(config.workers)]
    serving = None
    if isinstance(owner, Servers):
        serving = plan_serving(strategy, layout, config.batch, config.workers,
                               moments=moments(config.optimizer))  # fmt: skip
    return Description(
        config=config,
        samples=samples,
        vocab_size=text.tokenizer.vocab_size if text else None,
        unit=getattr(task, "unit", "targets"),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        leaf=leaf,
        steps=-(-end // config.batch.global_batch),
        last_step=(end - 1) % config.batch.global_batch + 1,
        leaves_by_worker=[span.stop - span.start for span in spans],
        bytes_a_step=serving.worker_sends
        if serving
        else _busiest(strategy, layout, leaves, config.workers),
        beginning=_beginning(config, strategy, layout, end),
        serving=serving,
        program=program,
        memory=_memory(config, text, model, layout, program, leaf),
    )


def _beginning(config: RunConfig, strategy: Strategy, layout: Layout, end: int) -> Beginning | None:
    if strategy.first is None or not isinstance(strategy.owner, Workers):
        return None
    first, batch = strategy.first.strategy, config.batch
    steps = -(-switches(phases_of(strategy), end, batch.global_batch)[-1] // batch.global_batch)
    return Beginning(first.name, steps, _busiest(first, layout, batch.leaves, config.workers))


def _busiest(strategy: Strategy, layout: Layout, leaves: int, workers: int) -> int:
    """What the worker that sends most sends in a step."""
    return max(
        bytes_sent_a_step(strategy, layout, leaves, workers, rank) for rank in range(workers)
    )


def _memory(
    config: RunConfig,
    text: LanguageModel | None,
    model: nn.Module,
    layout: Layout,
    program: int,
    leaf: LeafSize | None,
) -> dict[str, int]:
    strategy = strategy_of(config)
    in_step = isinstance(strategy.owner, Workers)
    sharded, leaves = is_sharded(strategy), config.batch.leaves
    # Asked for, a CUDA device may be another machine's.
    on_host = config.device != "cuda" and device_of(config, 0).type == "cpu"
    shared_memory = in_step and config.wire != "collective" and on_host
    table = expected_memory(
        elements=layout.elements,
        # Out of step, a worker adds up its own part of a step alone.
        leaves=leaves if in_step else max(1, -(-leaves // config.workers)),
        workers=config.workers if in_step else 1,
        update="owner" if sharded else "everyone",
        optimizer=config.optimizer,
        shared_memory=shared_memory,
        activations=leaf.bytes if leaf else _activations(config, text, model),
        measured=leaf is not None,
        alone=not any(sums_by_tree(phase) for phase in phases_of(strategy)),
        program=program,
    )
    if isinstance(strategy.owner, Servers) and sharded:
        del table["optimizer"]  # it lies with the servers
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    if fixed := model_bytes(model) - trained:
        table["weights that stay"] = fixed
    return table | held_for_agreement(strategy, layout, config.workers, shared_memory=shared_memory)


def _activations(config: RunConfig, text: LanguageModel | None, model: nn.Module) -> int:
    assert text is not None
    return decoder_activations(
        text.model_config.dimensions,
        vocab_size=text.tokenizer.vocab_size,
        micro_batch=config.batch.micro_batch,
        sequence_length=config.data.sequence_length,
        precision=config.precision,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
