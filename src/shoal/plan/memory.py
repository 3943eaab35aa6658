"""What a worker's memory holds at its fullest: readable arithmetic, checked against the kernel.

The peak is in a backward pass, when the activations of one leaf are all still there:

    this program            Python, torch and what it loads; measured, not computed
    weights                 n
    gradients               n for each slot: partial sums that wait for their sibling
    optimizer               n for each moment; 1/p of that where the owner updates
    peers' buffers          pages of peers that this worker touches (shared-memory wire);
                            the kernel counts a shared page in every process that maps it
    activations             what one leaf saves for its backward pass, and the logits twice
    gaps                    what malloc keeps, and holds between tensors of different sizes
    at work                 pages that the first steps touch, whatever the model

with n elements of 4 bytes and p workers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from shoal.models.config import Dimensions
from shoal.train.optimizer import OptimizerConfig, resolve_optimizer

FP32 = 4
BF16 = 2

WORKING = 20 << 20
"""Pages that the first real steps add, whatever the model: code of kernels for real sizes,
their workspaces, stacks of threads, batches read ahead. Fitted to one run of the default
configuration, which held 21 MB more than its tensors and `program_bytes`."""

HEAP = 32 << 20
"""With GAPS, a fit to what the process held beyond its tensors: 43 MB beside activations of
47 MB, 90 beside 273, 136 beside 399, but 70 (not 99) beside 305, mostly logits. The excess is
glibc's: with MALLOC_MMAP_THRESHOLD_=65536, which maps each tensor on its own, it is gone.
Measured leaves of 1 to 8 samples held 32 MB less than this fit, whatever their size, and 0.24 of
the activations more than they: of a measured leaf, HEAP alone is still to come."""

GAPS = 0.22
"""Of the activations; see HEAP."""


def expected_memory(
    *,
    elements: int,
    leaves: int,
    workers: int,
    update: Literal["everyone", "owner"],
    optimizer: OptimizerConfig,
    shared_memory: bool,
    activations: int,
    program: int,
    mapped_data: int = 0,
    measured: bool = False,
    alone: bool = False,
) -> dict[str, int]:
    """Bytes at the peak of the fullest worker of a run on processors, by what they hold.

    Args:
        elements: length of the flat buffer, which is the number of parameters and padding.
        leaves: of a full step.
        workers: of the run.
        update: who steps the optimizer.
        optimizer: how many moments each element has follows from it.
        shared_memory: whether workers map each other's buffers.
        activations: of one leaf, from `decoder_activations`, or as it was measured.
        program: from `program_bytes`.
        mapped_data: bytes of the token file, of which every page is read sooner or later.
        measured: whether `activations` is the measured memory of a leaf, torn heap included.
        alone: whether workers add up their own leaves in memory of their own (coded gradients,
            local steps), and not by one tree in buffers that the wire reaches.
    """
    weights = elements * FP32
    state = weights * moments(optimizer)
    table = {
        "this program": program,
        "weights": weights,
        "gradients": weights
        * (gradient_slots(-(-leaves // workers), 1) if alone else gradient_slots(leaves, workers)),
        "optimizer": state if update == "everyone" else -(-state // workers),
    }
    if shared_memory and workers > 1:
        table["peers' buffers"] = peers_bytes(weights, 0 if alone else leaves, workers)
    table["a leaf, measured" if measured else "activations"] = activations
    table["gaps between tensors"] = HEAP + (0 if measured else round(activations * GAPS))
    table["at work"] = WORKING
    if mapped_data:
        table["data, mapped"] = mapped_data
    return table


def gradient_slots(leaves: int, workers: int) -> int:
    """Flat gradient buffers that every worker allocates: as many as the neediest one uses."""
    from shoal.exchange.tree import share, slots_needed

    return max(slots_needed(leaves, share(leaves, workers, rank)) for rank in range(workers))


def peers_bytes(weights: int, leaves: int, workers: int) -> int:
    """Pages of peers' buffers that worker 0 touches.

    Once it has written its initial weights into every peer's. In a step it reads its piece
    (1/p) of every partial sum that a peer holds, and writes the finished piece back there.
    """
    from shoal.exchange.tree import cover, share

    sums = sum(len(cover(leaves, share(leaves, workers, peer))) for peer in range(1, workers))
    return (workers - 1) * weights + sums * weights // workers


def moments(config: OptimizerConfig) -> int:
    """Numbers that the optimizer keeps for each element."""
    config = resolve_optimizer(config)
    if config.name == "adamw":
        return 2
    return 1 if config.momentum else 0


def decoder_activations(
    sizes: Dimensions,
    *,
    vocab_size: int,
    micro_batch: int,
    sequence_length: int,
    precision: str,
    parameters: int,
    masked: bool = True,
) -> int:
    """Bytes that a leaf's backward pass of the built-in decoder finds in memory at its start.

    With C features, K those of keys (and as many of values), and F hidden ones, a layer saves
    for each token
        4 C              the stream before each of its two norms, and normalised
        2 C              the norms' results, for the products that follow
        C + 2 K          queries, keys and values (values are a view of them)
        C + K            queries and keys, turned
        C                attention's result
        4 F              gate and up (2 F), silu(gate), and their product
    the last norm saves 3 C, and the loss (`tasks.cross_entropy`) holds the log-probabilities
    and the gradient of the logits.
    A `masked` leaf (rows with several documents) also saves a mask of T numbers a token.
    The formula is within 3 % of the tensors measured; a Hugging Face model of the same
    dimensions saves somewhat more.
    """
    tokens = micro_batch * sequence_length
    keys = sizes.kv_heads * sizes.head_size
    stream = 4 * sizes.width
    products = 5 * sizes.width + 3 * keys + 4 * sizes.hidden
    mask = sequence_length if masked else 0
    # The gradient of the largest matrix exists beside the buffer that it is added to.
    passing = max(vocab_size * sizes.width, 2 * sizes.hidden * sizes.width) * FP32
    if precision == "bf16":  # products and their copies of the weights; the loss stays in fp32
        layer = tokens * (stream * FP32 + (products + mask) * BF16)
        last = tokens * (3 * sizes.width * FP32 + vocab_size * (2 * FP32 + BF16))
        return sizes.depth * layer + last + parameters * BF16 + passing
    layer = tokens * (stream + products + mask) * FP32
    last = tokens * (3 * sizes.width + 2 * vocab_size) * FP32
    return sizes.depth * layer + last + passing


def program_bytes() -> int:
    """Resident bytes of a process that has loaded what a worker loads, and holds no model.

    Call it before data is prepared or a model is made: what they leave behind would count.
    It takes one step of a model of a few kilobytes here and now: torch brings in its
    compiler with the first optimizer and its kernels with the first use.
    """
    import torch

    from shoal.models.config import ModelConfig
    from shoal.models.decoder import Decoder

    with torch.random.fork_rng(devices=[]):
        model = Decoder(ModelConfig(depth=1, width=16, heads=1), vocab_size=32)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        tokens = torch.zeros(1, 8, dtype=torch.int64)
        loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()
    return resident_bytes()


def resident_bytes(*, peak: bool = False) -> int:
    """This process's resident memory now, or the most that it ever was (Linux and macOS)."""
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts in bytes
    match = re.search(rf"^{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", status, re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024
