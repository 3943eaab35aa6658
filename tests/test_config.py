"""The configuration: the last one wins, and nothing is silently ignored."""

import ast
import dataclasses
import inspect
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest

from shoal.config import differences, flatten, leaves, load, to_toml
from shoal.errors import ShoalError
from shoal.train.config import (
    DEFAULT_STEPS,
    WIRES,
    BatchConfig,
    RunConfig,
    budget_settings,
    resolve,
    validate,
)


@dataclass(frozen=True, kw_only=True)
class Inner:
    lr: float = 0.1
    note: str | None = "hello"
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str = "a"
    count: int = 3
    on: bool = False
    kind: Literal["x", "y"] = "x"
    inner: Inner = field(default_factory=Inner)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def refusal(**sources) -> str:
    with pytest.raises(ShoalError) as caught:
        load(Outer, **sources)
    return str(caught.value)


def test_the_last_source_wins(tmp_path):
    one = write(tmp_path / "one.toml", 'name = "one"\ncount = 1\n[inner]\nlr = 0.5\n')
    two = write(tmp_path / "two.toml", "count = 2\ninner.lr = 1\n")
    loaded = load(
        Outer,
        base=Outer(name="base", on=True),
        files=[one, two],
        settings=["inner.lr=3e-4", "inner.lr=4e-4"],
    )
    assert loaded == Outer(name="one", count=2, on=True, inner=Inner(lr=4e-4))


def test_a_base_may_be_a_nested_or_a_dotted_mapping():
    assert load(Outer, base={"inner": {"lr": 2}, "inner.note": "n"}).inner == Inner(lr=2, note="n")


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("name=run 7", "name", "run 7"),
        ("name=7", "name", "7"),
        ("name=true", "name", "true"),
        ('name="7"', "name", "7"),
        ("name=a=b", "name", "a=b"),
        ("name=2024-01-01", "name", "2024-01-01"),
        ("count=1_000", "count", 1000),
        ("count=1e6", "count", 1_000_000),
        ("on=true", "on", True),
        ("inner.note=none", "inner.note", None),
        ("inner.sizes=[4, 5]", "inner.sizes", [4, 5]),
        ("inner.lr=1", "inner.lr", 1.0),
        ("inner={lr = 2.0}", "inner.lr", 2.0),
    ],
)
def test_a_setting_is_read_as_toml_and_else_as_text(setting, key, value):
    got = flatten(load(Outer, settings=[setting]))[key]
    assert got == value and type(got) is type(value)


def test_an_unknown_key_names_the_file_and_the_nearest_key(tmp_path):
    file = write(tmp_path / "run.toml", "[iner]\nlr = 1\n")
    assert refusal(files=[file]) == f"unknown key 'iner' in {file}; did you mean 'inner'?"
    message = refusal(settings=["inner.lt=1"])
    assert message == "unknown key 'inner.lt' in the setting 'inner.lt=1'; did you mean 'inner.lr'?"


@pytest.mark.parametrize("setting", ["lr=1", "model.lr=1"])
def test_a_leaf_name_alone_suggests_the_whole_key(setting):
    assert "did you mean 'inner.lr'?" in refusal(settings=[setting])


def test_a_key_that_is_near_to_none_suggests_nothing():
    assert "did you mean" not in refusal(settings=["zzzzzz=1"])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("inner.lr=fast", ["inner.lr must be a number", "'fast'"]),
        ("count=1.5", ["count must be a whole number", "1.5"]),
        ("count=true", ["count must be a whole number", "True"]),
        ("on=1", ["on must be true or false", "1"]),
        ("kind=z", ["kind must be one of 'x', 'y'", "'z'"]),
        ("inner.sizes=[a]", ["a list of which each item is a whole number"]),
        ("count=none", ["count must be a whole number"]),
        ("inner=3", ["'inner' in the setting", "is a table", "inner.lr"]),
        ("name", ["is not of the form key=value"]),
        ("count=1\non = true", ["count must be a whole number"]),
    ],
)
def test_a_wrong_value_names_key_value_and_expected_type(setting, words):
    message = refusal(settings=[setting])
    assert all(word in message for word in words), message


def test_a_wrong_value_is_refused_even_where_a_later_one_replaces_it(tmp_path):
    file = write(tmp_path / "run.toml", 'count = "many"\n')
    assert f"but {file} gives 'many'" in refusal(files=[file], settings=["count=1"])


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"a = ", "is not valid TOML"), (b"\xff", "is not UTF-8"), (None, "does not exist")],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, words):
    file = tmp_path / "run.toml"
    if content is not None:
        file.write_bytes(content)
    message = refusal(files=[file])
    assert words in message and str(file) in message


def test_toml_round_trips_with_unset_fields_and_awkward_text(tmp_path):
    text = 'quote " backslash \\ line\nbreak \x7f \x01 ü'
    original = Outer(name=text, inner=Inner(lr=1e-8, note=None, sizes=()))
    file = write(tmp_path / "out.toml", to_toml(original))
    assert load(Outer, files=[file]) == original
    assert (
        load(RunConfig, files=[write(tmp_path / "run.toml", to_toml(RunConfig()))]) == RunConfig()
    )
    assert "budget" not in to_toml(RunConfig())


def test_differences_are_sentences():
    assert differences(Outer(), Outer(name="b", inner=Inner(note=None))) == [
        "name is 'a' in the run and 'b' here",
        "inner.note is 'hello' in the run and unset here",
    ]
    assert differences(Outer(), Outer()) == []


def tables(cls: type) -> list[type]:
    here = [cls]
    for each in dataclasses.fields(cls):
        if dataclasses.is_dataclass(each.type):
            here += tables(each.type)
    return here


@pytest.mark.parametrize("cls", tables(RunConfig), ids=lambda cls: cls.__name__)
def test_every_field_says_what_it_does(cls):
    body = ast.parse(inspect.getsource(cls)).body[0].body
    for statement, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign):
            said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            assert said and len(after.value.value) > 10, statement.target.id


def test_the_whole_tree_was_found():
    assert len(tables(RunConfig)) == 13
    assert set(leaves(RunConfig)) == set(flatten(RunConfig()))


def test_the_default_run_is_valid_and_resolving_is_idempotent():
    once = resolve(RunConfig())
    assert resolve(once) == once
    assert load(RunConfig, base=flatten(once)) == once
    assert once.optimizer.beta2 == 0.95 and once.schedule.floor == 0.1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ["batch.global_batch=10", "batch.micro_batch=4"],
            ["batch.global_batch (10)", "batch.micro_batch (4)"],
        ),
        (
            ["workers=9", "batch.global_batch=16", "batch.micro_batch=2"],
            ["workers is 9", "only 8 leaves"],
        ),
        (["workers=0"], ["workers must be", "above 0"]),
        (["clip=0"], ["clip"]),
        (["clip=-1"], ["clip"]),
        (["timeout=nan"], ["timeout"]),
        (["threads=0"], ["threads"]),
        (["seed=-1"], ["seed"]),
        (["seed=9223372036854775808"], ["seed must be below 2**63"]),
        (["batch.micro_batch=0"], ["batch.micro_batch"]),
        (["budget.steps=5", "budget.epochs=1"], ["budget.steps and budget.epochs"]),
        (["budget.tokens=0"], ["budget.tokens"]),
        (["checkpoint.keep=0"], ["checkpoint.keep"]),
        (["checkpoint.save_every=-1"], ["checkpoint.save_every", "0 or more"]),
        (["evaluation.samples=0"], ["evaluation.samples"]),
        (["records.every=0"], ["records.every"]),
        (["wire=shared_memroy"], ["wire", "did you mean 'shared_memory'?"]),
        (["strategy=zero2"], ["strategy", "did you mean 'zero1'?"]),
        (["hogwild.moments=own"], ["hogwild.moments has no effect", "'ddp'"]),
        (
            ["strategy=hogwild", "hogwild.moments=own", "optimizer.name=sgd"],
            ["hogwild.moments has no effect", "keeps nothing"],
        ),
        (["precision=bf61"], ["precision", "did you mean 'bf16'?"]),
        (["device=gpu"], ["device", "cuda"]),
        (["optimizer.name=adam"], ["optimizer.name", "did you mean 'adamw'?"]),
        (["optimizer.name=sgd", "optimizer.beta1=0.9"], ["optimizer.beta1 has no effect"]),
        (["optimizer.momentum=0.9"], ["optimizer.momentum has no effect"]),
        (["optimizer.name=sgd", "optimizer.nesterov=true"], ["optimizer.nesterov"]),
        (["optimizer.lr=0"], ["optimizer.lr"]),
        (["optimizer.beta2=1"], ["optimizer.beta2"]),
        (["schedule.decay=0.1"], ["schedule.decay has no effect"]),
        (["schedule.name=constant", "schedule.floor=0.1"], ["schedule.floor has no effect"]),
        (["schedule.name=wsd", "schedule.decay=0.99"], ["longer than the run"]),
        (["schedule.warmup=2"], ["schedule.warmup"]),
    ],
)
def test_a_run_that_cannot_be_is_refused_by_key(settings, words):
    with pytest.raises(ShoalError) as caught:
        validate(load(RunConfig, settings=settings))
    assert all(word in str(caught.value) for word in words), caught.value


def test_as_many_workers_as_leaves_are_allowed():
    validate(replace(RunConfig(), workers=8, batch=BatchConfig(global_batch=8, micro_batch=1)))


def test_a_length_on_the_command_line_replaces_one_in_another_unit():
    config = load(RunConfig, base={"budget.steps": 7}, settings=budget_settings("tokens", 1000))
    validate(config)
    assert config.budget.samples(global_batch=32, sequence_length=256, epoch=100) == 4


@pytest.mark.parametrize(
    ("settings", "samples"),
    [([], DEFAULT_STEPS * 32), (["budget.steps=2"], 64), (["budget.epochs=3"], 300)],
)
def test_the_length_of_a_run_in_samples(settings, samples):
    budget = load(RunConfig, settings=settings).budget
    assert budget.samples(global_batch=32, sequence_length=256, epoch=100) == samples


def test_the_wires_are_those_that_exist():
    from shoal.wire.open import WIRES as REAL

    assert WIRES == REAL
