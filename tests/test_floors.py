"""Imports go down the floors only, and there are no circles."""

import ast
from pathlib import Path

import shoal

FLOORS = [
    "cli", "recipes", "report", "lab", "plan", "train", "checkpoint", "strategy", "exchange",
    "codec", "wire", "world", "tasks", "models", "data", "config", "errors",
]  # fmt: skip
ROOT = Path(shoal.__file__).parent


def imports_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("shoal."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("shoal.")}
    return found


def test_every_folder_is_a_floor() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "_"}
    assert folders <= set(FLOORS)


def test_imports_go_downward_only() -> None:
    upward = []
    for file in ROOT.rglob("*.py"):
        floor = file.relative_to(ROOT).parts[0].removesuffix(".py")
        if floor in FLOORS:
            for target in imports_of(file):
                if FLOORS.index(target) < FLOORS.index(floor):
                    upward.append(f"{file.relative_to(ROOT)} imports {target}")
    assert not upward


def test_no_file_or_peer_can_make_the_product_run_code() -> None:
    forbidden = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
    for file in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert not forbidden & {alias.name.split(".")[0] for alias in node.names}, file
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in forbidden, file
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in {"eval", "exec", "torch.load", "os.system"}, file
                assert not any(k.arg == "shell" for k in node.keywords), file


def test_files_and_functions_stay_short() -> None:
    for file in ROOT.rglob("*.py"):
        text = file.read_text()
        assert text.count("\n") <= 400, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 80, (file, node.name)
