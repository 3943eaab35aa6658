"""What must hold on CUDA devices as well. Skipped where there is none.

Workers share the first device, through copies in the host's memory, where there are more workers
than devices; else they have one each and meet over NCCL.
"""

import pytest
import torch
from commands import Fault, launched, prepare, said, seats, weights
from torch import nn

import shoal
from shoal.codec.base import Spec
from shoal.codec.catalogue import CODECS, codec_named
from shoal.errors import ShoalError
from shoal.exchange.tree import row_norms
from shoal.strategy.options import LocalConfig, build_strategy
from shoal.train.config import RunConfig
from shoal.train.device import repeatable

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def trained(strategy: str) -> tuple[str, list[float]]:
    """One worker over NCCL: the hash of its weights, and its losses."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 512), nn.Tanh(), nn.Linear(512, 16)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    samples = list(torch.randn(64, 16))
    rounds = strategy in ("diloco", "sparse_loco")
    local = LocalConfig(inner_steps=3, fragments=1, delay=0) if rounds else LocalConfig()
    losses = []
    with shoal.join(model, optimizer, strategy=build_strategy(strategy, local), clip=1.0) as worker:
        for batch in worker.batches(samples, global_batch=16, micro_batch=4, steps=12):
            squares = (model(batch) - batch).square()
            worker.backward(squares.sum(), squares.numel())
            if step := worker.step():
                losses.append(step.loss)
        return worker.weights_hash(), losses


@pytest.mark.parametrize(
    "strategy", ["ddp", "zero1", "ddp+int8", "powersgd", "diloco", "sparse_loco"]
)
def test_a_strategy_learns_and_repeats_to_the_bit(strategy):
    first, second = trained(strategy), trained(strategy)
    assert first == second
    assert first[1][-1] < first[1][0]


@pytest.mark.parametrize("name", [name for name in CODECS if name != "powersgd"])
def test_a_codec_says_the_same_on_both_kinds_of_device(name):
    codec, spec = codec_named(name), Spec("weight", (96, 128))
    chunk = torch.randn(spec.shape, generator=torch.Generator().manual_seed(1))
    found = []
    for device in ("cpu", "cuda"):
        payload = torch.empty(codec.wire_bytes(spec), dtype=torch.uint8, device=device)
        codec.encode(chunk.to(device), payload, codec.init(spec))
        out = torch.empty(spec.shape, device=device)
        codec.decode(payload, out)
        found.append(out.cpu())
    assert torch.allclose(*found, rtol=1e-2, atol=1e-6)


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("gpu"))


def run(ground, workers: int, *words: str) -> str:
    """The hash of what `shoal WORDS` trains."""
    ended = seats(workers, *words, at=ground, timeout=200)
    assert [one.status for one in ended] == [0] * workers, said(ended)
    return weights(ended)


@pytest.fixture(scope="module")
def alone(ground):
    return run(ground, 1, "train", "tiny.toml")


@pytest.mark.parametrize("strategy", ["ddp", "zero1"])
@pytest.mark.parametrize("wire", ["auto", "shared_memory", "collective"])
@pytest.mark.parametrize("workers", [2, 3])
def test_exact_strategies_have_the_bits_of_one_worker(ground, alone, workers, strategy, wire):
    words = ("--strategy", strategy, "--set", f"wire={wire}")
    assert run(ground, workers, "train", "tiny.toml", *words) == alone


def test_verify_finds_the_same_bits_on_the_device(ground):
    process = launched("verify", "tiny.toml", at=ground)
    text, _ = process.communicate(timeout=400)
    assert process.returncode == 0, text


@pytest.mark.parametrize("strategy", ["ddp", "zero1"])
def test_a_run_goes_on_with_another_number_of_workers(ground, alone, strategy):
    words = ("train", "tiny.toml", "--runs", f"{strategy}-halves", "--strategy", strategy)
    seats(2, *words, at=ground, fault=Fault("interrupt", 4), timeout=200)
    (folder,) = (ground / f"{strategy}-halves").iterdir()
    assert run(ground, 3, "train", "--resume", str(folder), "--workers", "3") == alone


@pytest.mark.parametrize("strategy", ["diloco", "streaming_diloco", "sparse_loco", "powersgd"])
def test_a_run_of_local_steps_or_low_rank_goes_on_as_if_never_stopped(ground, strategy):
    words = ("train", "tiny.toml", "--strategy", strategy, "--workers", "2",
             "--set", "budget.steps=24")  # fmt: skip
    if strategy != "powersgd":
        words += ("--set", "local.inner_steps=9")
    whole = run(ground, 2, *words, "--runs", f"{strategy}-whole")
    seats(2, *words, "--runs", f"{strategy}-halves", at=ground, fault=Fault("interrupt", 14),
          timeout=200)  # fmt: skip
    (folder,) = (ground / f"{strategy}-halves").iterdir()
    assert run(ground, 2, "train", "--resume", str(folder)) == whole


def test_an_operation_that_cannot_repeat_is_named():
    config, device = RunConfig(), torch.device("cuda")
    values = torch.randn(1, 1, 8, 8, device=device, requires_grad=True)
    refused = pytest.raises(
        ShoalError, match=r"adaptive_avg_pool2d.* no deterministic form on CUDA"
    )
    with refused, repeatable(config, device):
        nn.functional.adaptive_avg_pool2d(values, 3).sum().backward()
    torch.use_deterministic_algorithms(False)


def test_a_blocks_norm_does_not_depend_on_how_many_blocks_a_worker_has():
    rows = torch.randn(256, 1024, device="cuda")
    every = row_norms(rows)
    for count in (*range(1, 33), 64, 85, 128):
        assert torch.equal(row_norms(rows[:count]), every[:count])
