"""The frame of the command line: fast help, clear errors, right exit statuses."""

import json
import os
import subprocess
import sys
import time
import types

import pytest

from shoal.cli import doctor, main
from shoal.errors import ShoalError


def shoal(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "shoal", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )


def median_seconds() -> float:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        assert shoal("--help").returncode == 0
        times.append(time.perf_counter() - began)
    return sorted(times)[1]


def test_help_takes_less_than_three_tenths_of_a_second():
    # One more try: another process may have had the cores.
    assert median_seconds() < 0.3 or median_seconds() < 0.3


def test_help_lists_every_command_and_loads_nothing_heavy():
    code = (
        "import sys; from shoal.cli.main import run; run(['--help']); "
        "print(sorted({'torch', 'rich', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(f"  {name} " in done.stdout for name in main.COMMANDS)


def test_an_unknown_command_exits_2_with_a_suggestion():
    done = shoal("trian")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("shoal: error: unknown command 'trian'; did you mean 'train'?")


def test_an_unknown_option_exits_2_with_a_suggestion():
    done = shoal("doctor", "--jsn")
    assert done.returncode == 2
    assert "unknown argument '--jsn'; did you mean '--json'?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def command(monkeypatch):
    """A command whose work each test decides."""
    module = types.ModuleType("shoal.cli.eval")
    module.add_arguments = lambda parser: parser.add_argument("--number", type=int)
    module.run = lambda args: 0
    monkeypatch.setitem(sys.modules, "shoal.cli.eval", module)
    monkeypatch.delenv("SHOAL_DEBUG", raising=False)
    return module


def raising(error):
    def run(args):
        raise error

    return run


def test_a_shoal_error_is_one_line_and_status_1(command, capsys):
    command.run = raising(ShoalError("run.toml is missing"))
    assert main.run(["eval"]) == 1
    assert capsys.readouterr().err == "shoal: error: run.toml is missing\n"


def test_shoal_debug_shows_the_traceback(command, monkeypatch):
    monkeypatch.setenv("SHOAL_DEBUG", "1")
    command.run = raising(ShoalError("deep down"))
    with pytest.raises(ShoalError):
        main.run(["eval"])


def test_ctrl_c_is_status_130(command, capsys):
    command.run = raising(KeyboardInterrupt())
    assert main.run(["eval"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_mistake_in_the_program_is_not_hidden(command):
    command.run = raising(RuntimeError("a bug"))
    with pytest.raises(RuntimeError):
        main.run(["eval"])


def test_the_command_gets_its_options_and_gives_the_status(command):
    command.run = lambda args: args.number
    assert main.run(["eval", "--number", "7"]) == 7


@pytest.mark.parametrize("arguments", [["--number", "x"], ["--num", "7"], ["extra"], [""]])
def test_wrong_usage_exits_2(command, arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main.run(["eval", *arguments])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("shoal: error: ")


def test_options_of_subcommands_are_suggested(capsys):
    parser = main.Parser(prog="shoal data")
    parser.add_subparsers().add_parser("get").add_argument("--force", action="store_true")
    with pytest.raises(SystemExit):
        parser.parse(["get", "--forse"])
    assert "did you mean '--force'?" in capsys.readouterr().err


def test_a_closed_pipe_is_quiet():
    code = "from shoal.cli.main import main; main(['--help'])"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, timeout=60
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_doctor_names_what_is_missing_and_how_to_get_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "not" / "yet"))
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert main.run(["doctor", "--json"]) == 0
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    for extra in doctor.EXTRAS:
        assert findings[f"extra {extra}"]["advice"] == f"pip install 'shoal[{extra}]'"
    assert all(findings[name]["value"] is False for name in doctor.PROGRAMS)
    assert str(tmp_path) in findings["Cache"]["says"]
    assert {"Python", "Cores", "Memory", "/dev/shm", "torch", "CUDA", "Collectives"} <= set(
        findings
    )


def test_doctor_prints_a_table(capsys):
    assert main.run(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "Python" in printed and "Gloo" in printed


def test_the_tightest_control_group_counts(monkeypatch):
    contents = ["max\n", f"{2**63 - 4096}\n", "4000\n", "3000\n"]
    monkeypatch.setattr(doctor, "_cgroup_files", lambda *names: contents)
    assert doctor.cgroup_memory_limit() == 3000
