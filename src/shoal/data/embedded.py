"""The corpus every machine has: the Python installation's own documentation and sources."""

import ast
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from shoal.data.document import Document

MOST_CHARACTERS = 8_000_000
"""Prose comes first, so that the limit falls on sources; training a tokenizer takes seconds."""

SKIPPED = {
    # Tests and other people's packages teach little,
    *("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_bundled"),
    # and so do tables of numbers and small applications.
    *("encodings", "pydoc_data", "idlelib", "lib2to3", "turtledemo", "lib-dynload"),
}


def python_documents() -> Iterator[Document]:
    """The language reference, then every module's docstrings, then the code without them.

    Docstrings are taken out of the code so that no text is in two documents: a held-out
    docstring must not be seen in training.
    """
    prose, code = [], []
    for name, source in _sources():
        found = list(_docstrings(_parsed(source), _module(name)))
        parts = [f"{title}\n\n{text}\n" for title, text, _ in found]
        prose.append(Document(f"docstrings/{name}", "\n".join(parts)))
        dropped = {number for _, _, lines in found for number in lines}
        code.append(Document(f"code/{name}", _without(source, dropped)))
    left = MOST_CHARACTERS
    for document in chain(_topics(), prose, code):
        left -= len(document.text)
        if left < 0:
            return
        if document.text.strip():
            yield document


def python_version() -> str:
    """What decides the corpus: the Python release and where its library lies."""
    return f"{sys.version.split()[0]} {_library()}"


def _library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _topics() -> Iterator[Document]:
    try:
        import pydoc_data.topics as reference
    except ImportError:  # some distributions leave the documentation out
        return
    for name, text in sorted(reference.topics.items()):
        yield Document(f"reference/{name}", text)


def _sources() -> Iterator[tuple[str, str]]:
    """(path inside the library, text), sorted by path on every machine."""
    root = _library()
    paths = {path.relative_to(root).as_posix(): path for path in _modules(root)}
    for name in sorted(paths):
        try:
            yield name, paths[name].read_bytes().decode()
        except (OSError, UnicodeDecodeError):
            continue


def _modules(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name in SKIPPED or path.is_symlink():
            continue
        if path.is_dir():
            yield from _modules(path)
        elif path.suffix == ".py":
            yield path


def _module(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _parsed(source: str) -> ast.Module:
    """The module's tree; an empty one for templates and for code of other versions."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in the library's own strings
            return ast.parse(source)
    except (SyntaxError, ValueError):
        return ast.Module(body=[], type_ignores=[])


Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _docstrings(node: ast.Module | Documented, title: str) -> Iterator[tuple[str, str, range]]:
    """(signature, docstring, its lines) of a module and all in it, in the order of the file."""
    if text := ast.get_docstring(node):
        first = node.body[0]
        lines = range(first.lineno, (first.end_lineno or first.lineno) + 1)
        yield _signature(node, title), text, lines
    for child in node.body:
        if isinstance(child, Documented):
            yield from _docstrings(child, f"{title}.{child.name}")


def _signature(node: ast.Module | Documented, title: str) -> str:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return f"{title}({ast.unparse(node.args)})"
    kind = "module" if isinstance(node, ast.Module) else "class"
    return f"{kind} {title}"


def _without(source: str, dropped: set[int]) -> str:
    # Lines as the parser counts them: not at form feeds, as str.splitlines would.
    lines = source.replace("\r\n", "\n").split("\n")
    return "\n".join(line for number, line in enumerate(lines, 1) if number not in dropped)
