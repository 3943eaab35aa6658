"""Every key of the configuration does something: each is changed, and its effect is seen."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import Fault, prepare, said, seats, the_run
from processes import run

from shoal.config import leaves
from shoal.train.config import RunConfig

Outcome = dict[str, Any]
"""What a run was: `refused`, or its figures, files and parts. See `_train`."""


def changes(*names: str, **exactly: Any):
    """The named figures differ from the base run's, and some have exactly these values."""

    def check(base: Outcome, found: Outcome) -> None:
        assert "refused" not in found, found
        for name in names:
            assert found[name] != base[name], name
        for name, value in exactly.items():
            assert found[name] == value, (name, found[name])

    return check


def keeps_weights_and_changes(*names: str, **exactly: Any):
    """As `changes`, with the same weights."""

    def check(base: Outcome, found: Outcome) -> None:
        changes(*names, **exactly)(base, found)
        assert found["weights"] == base["weights"]

    return check


def is_refused(*words: str):
    """The run does not start, and the reason holds these words."""

    def check(_: Outcome, found: Outcome) -> None:
        for word in words:
            assert word in found.get("refused", "it ran"), found

    return check


SGD = ("optimizer.name=sgd", "optimizer.lr=0.1")
MOMENTUM = (*SGD, "optimizer.momentum=0.5")
WSD = ("schedule.name=wsd",)
JSONL = ("data.source=two.jsonl",)
TWO_HEADS = ("model.heads=2",)
LOCAL = ("strategy=diloco", "local.warm_up=0", "local.inner_steps=2", "local.ramp=0")
ONE = ("strategy=diloco", "local.warm_up=0", "local.inner_steps=1")
WARM = ("strategy=diloco", "local.inner_steps=2", "local.warm_up=0.5")
HOGWILD = ("strategy=hogwild",)
SSP = ("strategy=ssp",)
ASYNC = ("strategy=async_ps",)
EPOCH = ("budget.steps=none", "data.source=short.txt", "budget.epochs=1")

# key: (settings beside which it is changed, its changed value, what must be seen)
KNOBS: dict[str, tuple[tuple[str, ...], Any, Any]] = {
    "recipe": ((), "ml", is_refused("recipe", "lm")),
    "strategy": ((), "zero1", keeps_weights_and_changes("purposes")),
    "wire": ((), "collective", keeps_weights_and_changes("wire")),
    "workers": ((), 9, is_refused("workers is 9", "4 leaves")),
    "shares": (
        (),
        "3,1",
        is_refused("shares is '3,1'", "1 positive numbers"),
    ),  # and see test_shares
    "threads": ((), 2, changes(threads=2)),
    "device": ((), "tpu", is_refused("device is 'tpu'", "cuda")),
    "deterministic": (
        ("device=cpu",),
        "false",
        is_refused("deterministic", "device cpu"),
    ),  # and see test_gpu
    "precision": ((), "bf16", changes("weights")),
    "seed": ((), 1, changes("weights", "first_loss", "indices")),
    "clip": ((), 0.01, changes("weights")),
    "timeout": ((), -1, is_refused("timeout")),  # and see the test at the end
    "data.source": ((), "other.txt", changes("weights", "samples")),
    "data.text_field": (JSONL, "body", changes("weights")),
    "data.sequence_length": ((), 24, changes("weights", "samples", tokens=8 * 24)),
    "data.tokenizer": ((), "TOKENIZER", changes("weights", "shapes")),
    "data.vocab_size": ((), 280, changes("weights", "shapes")),
    "data.holdout": ((), 0.3, changes("samples", "weights")),
    "data.label_field": ((), "class", is_refused("data.label_field", "'lm'")),
    "data.target_field": ((), "de", is_refused("data.target_field", "'lm'")),
    "data.target": ((), "other.txt", is_refused("data.target", "'lm'")),
    "data.time_field": ((), "when", is_refused("data.time_field", "'lm'")),
    "data.group_field": ((), "who", is_refused("data.group_field", "'lm'")),
    "data.unreadable": ((), 0.5, is_refused("data.unreadable", "'lm'")),
    "model.path": ((), "nowhere", is_refused("model.path = nowhere")),
    "model.depth": ((), 2, changes("weights", "shapes")),
    "model.width": ((), 48, changes("weights", "shapes")),
    "model.heads": ((), 2, changes("weights")),
    "model.kv_heads": (TWO_HEADS, 1, changes("weights", "shapes")),
    "model.hidden": ((), 40, changes("weights", "shapes")),
    "model.tied": ((), "false", changes("weights", "shapes")),
    "model.rope_theta": ((), 100.0, changes("weights")),
    "model.kind": ((), "vit", is_refused("model.kind", "'lm'")),
    "model.dropout": ((), 0.5, is_refused("model.dropout", "'lm'")),
    "model.norm_eps": ((), 0.1, changes("weights")),
    "batch.global_batch": ((), 4, changes("weights", position=16)),
    "batch.micro_batch": ((), 4, changes("weights", leaves=8)),
    "budget.steps": ((), 3, changes("weights", steps=3)),
    "budget.tokens": (("budget.steps=none",), 10 * 16, changes("weights", steps=2, position=10)),
    "budget.epochs": (EPOCH, 2, changes("steps")),
    "optimizer.name": ((), "sgd", changes("weights")),
    "optimizer.lr": ((), 1e-2, changes("weights", "rates")),
    "optimizer.beta1": ((), 0.5, changes("weights")),
    "optimizer.beta2": ((), 0.5, changes("weights")),
    "optimizer.eps": ((), 1e-2, changes("weights")),
    "optimizer.weight_decay": ((), 0.5, changes("weights")),
    "optimizer.momentum": (SGD, 0.9, changes("weights")),
    "optimizer.nesterov": (MOMENTUM, "true", changes("weights")),
    "schedule.name": ((), "constant", changes("weights", "rates")),
    "schedule.warmup": ((), 0.5, changes("weights", "rates")),
    "schedule.decay": (WSD, 0.9, changes("weights", "rates")),
    "schedule.floor": ((), 0.9, changes("weights", "rates")),
    "local.inner_steps": (LOCAL, 4, changes("weights")),
    "local.fragments": (LOCAL, 2, changes("weights")),
    "local.delay": (LOCAL, 1, changes("weights")),
    "local.mix": (LOCAL, 0.5, changes("weights")),
    "local.outer_lr": (LOCAL, 0.3, changes("weights")),
    "local.outer_momentum": (LOCAL, 0.1, changes("weights")),
    "local.outer_annealed": (LOCAL, "true", changes("weights")),
    "local.ramp": (LOCAL, 1.0, changes("weights")),
    "local.growth": (ONE, 1.0, changes("weights")),
    "local.warm_up": (LOCAL, 0.5, changes("weights")),
    "local.warm_up_with": (WARM, "ddp", changes("weights")),
    "hogwild.moments": (HOGWILD, "own", keeps_weights_and_changes("moments")),
    "servers.count": (ASYNC, 3, changes("parts", "servers")),
    "servers.bound": (SSP, 5, changes("parts")),
    "servers.buffer": (ASYNC, 1, changes("parts")),
    "servers.damping": (ASYNC, 0.5, changes("parts")),
    "servers.compensation": (ASYNC, 0.04, changes("parts")),
    "servers.patience": (ASYNC, 9, changes("patience", patience=9.0)),
    "servers.journal": (ASYNC, "false", changes("journal")),
    "servers.plain": (ASYNC, "true", changes("key", key="no key is needed")),
    "checkpoint.save_every": ((), 3, keeps_weights_and_changes(checkpoints=[3, 4])),
    "checkpoint.keep": ((), 1, keeps_weights_and_changes(checkpoints=[4])),
    "evaluation.every": ((), 1, keeps_weights_and_changes(measured=[1, 2, 3, 4])),
    "evaluation.samples": ((), 3, keeps_weights_and_changes("held_out")),
    "records.tensorboard": ((), "true", keeps_weights_and_changes("files")),
    "records.wandb": ((), "true", is_refused("pip install 'shoal[wandb]'")),
    "records.trackio": ((), "true", is_refused("pip install 'shoal[trackio]'")),
    "records.every": (("evaluation.every=0",), 3, keeps_weights_and_changes(recorded=[1, 3, 4])),
}
SHORT = ("budget.steps=4", "batch.micro_batch=2", "checkpoint.save_every=2", "evaluation.every=2")


def test_every_key_of_the_configuration_is_in_the_table():
    assert set(KNOBS) == set(leaves(RunConfig))


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    at = prepare(tmp_path_factory.mktemp("knobs"))
    corpus = (at / "corpus.txt").read_text()
    (at / "other.txt").write_text(corpus[: len(corpus) // 2])
    (at / "short.txt").write_text(corpus[:1500])
    pairs = [{"text": part, "body": part[::-1]} for part in corpus.split("\n\n")]
    (at / "two.jsonl").write_text("\n".join(json.dumps(pair) for pair in pairs))
    return at


@pytest.fixture(scope="module")
def outcomes(ground) -> dict[tuple[str, ...], Outcome]:
    """All runs that the table asks for, by their settings; two processes share them."""
    chosen = {()} | {beside for beside, _, _ in KNOBS.values()}
    chosen |= {(*beside, f"{key}={value}") for key, (beside, value, _) in KNOBS.items()}
    shares = run(2, _train_all, str(ground), sorted(chosen), timeout=300)
    return {tuple(settings): found for share in shares for settings, found in share}


@pytest.mark.parametrize("key", KNOBS)
def test_a_changed_key_has_its_effect(outcomes, key):
    beside, value, check = KNOBS[key]
    check(outcomes[beside], outcomes[(*beside, f"{key}={value}")])


def test_the_timeout_is_how_long_a_silent_worker_is_waited_for(ground):
    words = ("train", "tiny.toml", "--set", "timeout=0.5", "--wire", "shared_memory")
    ended = seats(2, *words, at=ground, fault=Fault("stop", 2, 1))
    assert "worker 1 did not answer for 0" in said(ended)
    assert the_run(ground).is_dir()


def _train_all(at: str, every: list[tuple[str, ...]]) -> list[tuple[tuple[str, ...], Outcome]]:
    import os

    rank = int(os.environ["RANK"])
    os.chdir(at)
    os.environ["SHOAL_CACHE"] = f"{at}/cache-{rank}"
    _train(("data.vocab_size=290",), Path(f"runs-{rank}"))  # leaves a tokenizer in the cache
    (tokenizer,) = Path(f"cache-{rank}").rglob("tokenizer.json")
    place = str(tokenizer.parent)
    return [
        (each, _train(tuple(s.replace("TOKENIZER", place) for s in each), Path(f"runs-{rank}")))
        for each in every[rank::2]
    ]


def _served(config: RunConfig, runs: Path, stack: Any) -> Outcome:
    """The server of a run on parameter servers, ready to serve. `tests/test_served*.py` have what
    its parts do."""
    from argparse import Namespace

    from shoal.cli.serve import key_of
    from shoal.errors import ShoalError
    from shoal.strategy.serving.protocol import TO_SERVER
    from shoal.train.config import strategy_of
    from shoal.train.serving import FirstRun, Place
    from shoal.wire.ledger import Ledger
    from shoal.wire.messages import Listener

    place = Place(listen="tcp://127.0.0.1:0", key=None)
    listener = Listener(place.listen, TO_SERVER, Ledger(), key=None, job=place.job)
    stack.callback(listener.close)
    first = FirstRun(config, place, listener, Ledger(), runs, stack, json_lines=True, resumed=False)
    try:
        key = "no key is needed" if key_of(Namespace(key=None), config) is None else "a key"
    except ShoalError as error:
        key = str(error)
    return {
        "parts": repr(strategy_of(config)),
        "servers": first.server.servers,
        "patience": first.server.coordinator.pace.floor,
        "journal": first.server.journal is None,
        "key": key,
    }


def _train(settings: tuple[str, ...], runs: Path) -> Outcome:
    """Train through the parts of `shoal train`, one worker, and say everything that was seen."""
    import shutil
    from contextlib import ExitStack

    import torch

    from shoal.errors import ShoalError
    from shoal.recipes.catalogue import configure, recipe
    from shoal.train.config import resolve
    from shoal.train.start import start
    from shoal.world.join import join_world

    found: Outcome = {}
    try:
        with ExitStack() as stack:
            config = configure(files=[Path("tiny.toml")], settings=[*SHORT, *settings])
            config = resolve(config)
            if config.servers.count:
                return _served(config, runs, stack)
            build, world = recipe(config.recipe).build, join_world({})
            training = start(config, build, world, stack, runs=runs, quiet=True)
            worker = training.worker
            seen: list[Any] = []
            worker.leaf_observers.append(seen.append)
            pages: set[str] = set()
            training.observers.append(lambda step: pages.update(step.ledger.sent))
            training.run()
            found["purposes"] = sorted(pages)
            found["indices"] = [leaf.indices for leaf in seen]
            found["leaves"] = len(seen)
            found["weights"] = worker.weights_hash()
            found["shapes"] = [tuple(p.shape) for p in worker.model.parameters()]
            found["moments"] = getattr(worker, "shared_moments", None)
            found["wire"] = type(worker.wire).__name__
            found["threads"] = torch.get_num_threads()
            found["samples"] = len(training.task.samples("train"))
        lines = (training.folder / "records.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        found["recorded"] = [record["step"] for record in records]
        found["steps"], found["position"] = records[-1]["step"], records[-1]["position"]
        found["first_loss"], found["tokens"] = records[0]["loss"], records[0]["tokens"]
        found["rates"] = [record["lr"] for record in records]
        found["measured"] = [record["step"] for record in records if "held_out" in record]
        found["held_out"] = records[-1]["held_out"]
        saved = sorted(training.folder.glob("checkpoints/step-*"))
        found["checkpoints"] = [int(path.name.removeprefix("step-")) for path in saved]
        found["files"] = sorted(path.name for path in training.folder.iterdir())
    except ShoalError as error:
        found = {"refused": str(error)}
    finally:
        shutil.rmtree(runs, ignore_errors=True)
    return found
