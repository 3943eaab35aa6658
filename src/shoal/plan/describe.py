"""What a run will be, before it starts: the answer of `shoal train --dry-run`."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.config import to_toml
from shoal.exchange.layout import Layout, lay_out
from shoal.exchange.tree import share
from shoal.models.size import skeleton
from shoal.plan.agreement import bytes_held, bytes_sent_a_step, is_sharded
from shoal.plan.memory import decoder_activations, expected_memory, moments
from shoal.plan.serving import ServingPlan, plan_serving
from shoal.strategy.parts import Servers, Strategy, Workers
from shoal.tasks.language_model import LanguageModel
from shoal.train.config import RunConfig, strategy_of


@dataclass(frozen=True, kw_only=True)
class Description:
    """The arithmetic of a run. Bytes are of the fullest worker."""

    config: RunConfig
    samples: int
    """In the training split."""
    vocab_size: int
    parameters: int
    steps: int
    last_step: int
    """Samples of the last step."""
    leaves_by_worker: list[int]
    bytes_a_step: int
    """What the busiest worker sends in a full step, counts and norms left out."""
    serving: ServingPlan | None
    """Of a run on parameter servers."""
    program: int
    """Bytes of a process before it holds a model."""
    memory: dict[str, int] | None
    """By what it holds; None for a Hugging Face model, whose activations are not known."""

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
        return [
            f"# global batch  {batch.global_batch} samples = {batch.leaves} leaves x "
            f"{batch.micro_batch} samples = {batch.global_batch * length:,} tokens",
            f"# workers       {self.config.workers}, with {leaves} leaves each step"
            + (" at equal speeds" if self.free else ""),
            f"# steps         {self.steps:,}{last} ({self.samples:,} samples in an epoch)",
            f"# parameters    {self.parameters:,} (vocabulary {self.vocab_size:,})",
            f"# wire          {self.bytes_a_step / 1e6:.1f} MB sent a step by each worker"
            + (f", and {self.serving.worker_receives / 1e6:.1f} MB received" if self.serving
               else ""),
        ]  # fmt: skip

    @property
    def free(self) -> bool:
        """Whether workers take their parts of a step as they come."""
        return not isinstance(strategy_of(self.config).owner, Workers)

    def _memory(self) -> list[str]:
        if self.memory is None:
            return ["# memory        not predicted for a Hugging Face model"]
        return [f"# memory        {_told(self.memory, 'at the peak of a worker')}"]

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


def _told(memory: dict[str, int], what: str) -> str:
    parts = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in memory.items())
    return f"{sum(memory.values()) / 1e6:,.0f} MB {what} ({parts})"


def describe(config: RunConfig, task: LanguageModel, *, program: int) -> Description:
    """Work a run out without training it; `program` is what `program_bytes` measured.

    Raises ShoalError where it could not start.
    """
    strategy = strategy_of(config)
    vocab_size = task.tokenizer.vocab_size
    model = skeleton(config.model, vocab_size)
    owner = strategy.owner
    owners = owner.count if isinstance(owner, Servers) else config.workers
    layout = lay_out(list(model.named_parameters()), owners)
    samples = len(task.samples("train"))
    end = config.budget.samples(
        global_batch=config.batch.global_batch,
        sequence_length=config.data.sequence_length,
        epoch=samples,
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    leaves = config.batch.leaves
    spans = [share(leaves, config.workers, rank) for rank in range(config.workers)]
    serving = None
    if isinstance(owner, Servers):
        serving = plan_serving(strategy, layout, config.batch, config.workers,
                               moments=moments(config.optimizer))  # fmt: skip
    return Description(
        config=config,
        samples=samples,
        vocab_size=vocab_size,
        parameters=parameters,
        steps=-(-end // config.batch.global_batch),
        last_step=(end - 1) % config.batch.global_batch + 1,
        leaves_by_worker=[span.stop - span.start for span in spans],
        bytes_a_step=serving.worker_sends
        if serving
        else max(
            bytes_sent_a_step(strategy, layout, leaves, config.workers, rank)
            for rank in range(config.workers)
        ),
        serving=serving,
        program=program,
        memory=_memory(config, strategy, layout, vocab_size, parameters, program),
    )


def _memory(
    config: RunConfig,
    strategy: Strategy,
    layout: Layout,
    vocab_size: int,
    parameters: int,
    program: int,
) -> dict[str, int] | None:
    if config.model.path is not None:
        return None
    in_step = isinstance(strategy.owner, Workers)
    sharded, leaves = is_sharded(strategy), config.batch.leaves
    table = expected_memory(
        elements=layout.elements,
        # Out of step, a worker adds up its own part of a step alone.
        leaves=leaves if in_step else max(1, -(-leaves // config.workers)),
        workers=config.workers if in_step else 1,
        update="owner" if sharded else "everyone",
        optimizer=config.optimizer,
        shared_memory=in_step and config.wire != "collective" and config.device != "cuda",
        activations=decoder_activations(
            config.model.dimensions,
            vocab_size=vocab_size,
            micro_batch=config.batch.micro_batch,
            sequence_length=config.data.sequence_length,
            precision=config.precision,
            parameters=parameters,
        ),
        program=program,
    )
    if isinstance(strategy.owner, Servers) and sharded:
        del table["optimizer"]  # it lies with the servers
    if agreeing := bytes_held(strategy, layout, config.workers):
        table["agreement"] = agreeing
    return table
