"""A tree of frozen dataclasses, built from defaults, TOML files and `key=value` settings.

The last one wins. A key is the path of a field, with dots: `optimizer.lr`. An unknown key
is an error that names the nearest known one, because a misspelt key that silently falls
back to its default costs a run.
"""

import dataclasses
import difflib
import functools
import json
import tomllib
import types
import typing
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from shoal.errors import ShoalError

C = TypeVar("C")

JSON = None | bool | int | float | str | list[Any] | dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Given:
    """One value as somebody gave it, and where."""

    value: Any
    origin: str
    text: str | None = None
    """The characters of a `key=value` setting, for fields that want text."""


def load(
    cls: type[C],
    *,
    base: Mapping[str, Any] | C | None = None,
    files: Sequence[Path] = (),
    settings: Sequence[str] = (),
    base_name: str = "the base configuration",
) -> C:
    """Build a `cls` from `base`, then `files`, then `settings`; the last one wins.

    `base` is an instance, or a mapping whose keys may be nested or dotted. A setting is
    `key=value`, where the value is read as TOML (`3e-4`, `true`, `[1, 2]`) and as plain
    text where it is not TOML. `none` unsets a field that may be unset.

    Raises:
        ShoalError: an unknown key, a value of the wrong type, or a file that cannot be read.
    """
    given: list[tuple[str, _Given]] = []
    if base is not None:
        values = base if isinstance(base, Mapping) else flatten(base)
        given.extend(_read_mapping(cls, values, base_name))
    for file in files:
        given.extend(_read_mapping(cls, _read_toml(file), str(file)))
    for setting in settings:
        given.extend(_read_setting(cls, setting))
    # Every value is checked, also one that a later value replaces.
    known = leaves(cls)
    return _build(cls, {key: _convert(key, item, known[key].annotation) for key, item in given})


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A field that holds a value and not another dataclass."""

    annotation: Any
    default: Any
    """`dataclasses.MISSING` where the field must be given."""


def leaves(cls: type) -> Mapping[str, Leaf]:
    """Every leaf of the tree under `cls`, by its dotted key, in the order of declaration."""
    return _leaves(cls)


@functools.cache
def _leaves(cls: Hashable) -> Mapping[str, Leaf]:
    assert isinstance(cls, type)
    found: dict[str, Leaf] = {}
    for field, annotation in _fields(cls):
        if _is_tree(annotation):
            for key, leaf in leaves(annotation).items():
                found[f"{field.name}.{key}"] = leaf
            continue
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        found[field.name] = Leaf(annotation, default)
    return types.MappingProxyType(found)


def flatten(instance: Any) -> dict[str, JSON]:
    """The leaves of `instance` by dotted key, as values that JSON can hold."""
    plain = ((key, msgspec.to_builtins(value)) for key, value in _walk(instance))
    return {key: list(value) if isinstance(value, tuple) else value for key, value in plain}


def differences(a: Any, b: Any) -> list[str]:
    """One sentence for each leaf in which the run's `a` and the present `b` differ."""
    there, here = flatten(a), flatten(b)
    return [
        f"{key} is {_show(there.get(key))} in the run and {_show(here.get(key))} here"
        for key in dict.fromkeys([*there, *here])
        if there.get(key) != here.get(key)
    ]


def to_toml(instance: Any) -> str:
    """`instance` as a TOML document that `load` reads back to an equal instance.

    An unset field is left out where unset is its default, and written as `"none"` elsewhere.
    """
    defaults = leaves(type(instance))
    tables: dict[str, list[str]] = {"": []}
    for key, value in flatten(instance).items():
        table, _, name = key.rpartition(".")
        lines = tables.setdefault(table, [])
        if value is not None:
            lines.append(f"{name} = {_toml(value)}")
        elif defaults[key].default is not None:
            lines.append(f'{name} = "none"')
    parts = ["\n".join(tables.pop(""))]
    parts += ["\n".join([f"[{table}]", *lines]) for table, lines in tables.items() if lines]
    return "\n\n".join(part for part in parts if part) + "\n"


def suggestion(word: str, known: Sequence[str]) -> str:
    """`; did you mean 'X'?` for the nearest of `known`, or nothing where none is near.

    A leaf's name without its table (`lr`) finds the leaf (`optimizer.lr`).
    """
    last = word.rpartition(".")[2]
    by_name: dict[str, list[str]] = {}
    for key in known:
        by_name.setdefault(key.rpartition(".")[2], []).append(key)
    near = difflib.get_close_matches(word, known, n=1)
    if not near and last not in by_name:
        last = next(iter(difflib.get_close_matches(last, by_name, n=1)), last)
    near = near or by_name.get(last, [])
    return f"; did you mean {' or '.join(repr(key) for key in near)}?" if near else ""


def _fields(cls: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(cls)
    return [(field, hints[field.name]) for field in dataclasses.fields(cls)]


def _is_tree(annotation: Any) -> bool:
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def _tables(cls: type) -> set[str]:
    """The dotted names of the nested dataclasses."""
    return {
        ".".join(parts[:n])
        for parts in (key.split(".") for key in leaves(cls))
        for n in range(1, len(parts))
    }


def _walk(instance: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field, annotation in _fields(type(instance)):
        value = getattr(instance, field.name)
        if _is_tree(annotation):
            yield from _walk(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def _build(cls: type[C], values: Mapping[str, Any]) -> C:
    arguments: dict[str, Any] = {}
    for field, annotation in _fields(cls):
        if _is_tree(annotation):
            prefix = f"{field.name}."
            below = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
            arguments[field.name] = _build(annotation, below)
        elif field.name in values:
            arguments[field.name] = values[field.name]
        elif leaves(cls)[field.name].default is dataclasses.MISSING:
            raise ShoalError(f"the key {field.name!r} has no default and must be set")
    return cls(**arguments)


def _read_toml(file: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(file.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise ShoalError(f"the configuration file {file} does not exist") from None
    except OSError as error:
        raise ShoalError(f"cannot read the configuration file {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ShoalError(
            f"{file} is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ShoalError(f"{file} is not valid TOML: {error}") from None


def _read_mapping(
    cls: type, values: Mapping[str, Any], origin: str, prefix: str = ""
) -> Iterator[tuple[str, _Given]]:
    tables, known = _tables(cls), leaves(cls)
    for name, value in values.items():
        key = prefix + name
        if key in known:
            yield key, _Given(value, origin)
        elif key not in tables:
            near = suggestion(key, [*known, *tables])
            raise ShoalError(f"unknown key {key!r} in {origin}{near}")
        elif isinstance(value, Mapping):
            yield from _read_mapping(cls, value, origin, f"{key}.")
        else:
            keys = [k for k in known if k.startswith(f"{key}.")]
            raise ShoalError(
                f"{key!r} in {origin} is a table and cannot be {_show(value)}; "
                f"set one of {', '.join(keys)}"
            )


def _read_setting(cls: type, setting: str) -> Iterator[tuple[str, _Given]]:
    key, equals, text = (part.strip() for part in setting.partition("="))
    if not equals or not key:
        raise ShoalError(f"the setting {setting!r} is not of the form key=value")
    try:
        document = tomllib.loads(f"value = {text}")
        # A line break in the text could carry more keys; such a text is no TOML value.
        value = document["value"] if len(document) == 1 else text
    except tomllib.TOMLDecodeError:
        value = text
    for name, item in _read_mapping(cls, {key: value}, f"the setting {setting!r}"):
        yield name, dataclasses.replace(item, text=text if name == key else None)


def _convert(key: str, given: _Given, annotation: Any) -> Any:
    """The value in the field's type: strict, but a whole number may stand for a float."""
    optional = type(None) in typing.get_args(annotation)
    if optional and "none" in (given.value, given.text):
        return None
    value = given.value
    if isinstance(value, float) and value.is_integer() and _admits(annotation, int):
        value = int(value)  # 1e6 tokens
    candidates = [value] if given.text is None else [value, given.text]
    for candidate in candidates:
        try:
            return msgspec.convert(candidate, annotation)
        except msgspec.ValidationError:
            continue
    raise ShoalError(
        f"{key} must be {_describe(annotation)}, but {given.origin} gives {_show(given.value)}"
    )


def _admits(annotation: Any, kind: type) -> bool:
    members = typing.get_args(annotation) or (annotation,)
    return kind in members and float not in members


def _describe(annotation: Any) -> str:
    """A type in words."""
    names = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        type(None): "none",
        Path: "a path",
    }
    if annotation in names:
        return names[annotation]
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(member) for member in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(member) for member in arguments)
    if origin in (list, tuple) and arguments:
        return f"a list of which each item is {_describe(arguments[0])}"
    return f"a {getattr(annotation, '__name__', annotation)}"


def _show(value: Any) -> str:
    return "unset" if value is None else repr(value)


def _toml(value: JSON) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, and TOML wants DEL escaped too.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, dict):
        items = (f"{json.dumps(name)} = {_toml(item)}" for name, item in value.items())
        return f"{{{', '.join(items)}}}"
    return repr(value)  # numbers; Python writes inf, nan and exponents as TOML does
