"""A recipe of one's own: a file with a task, trained, resumed and measured like any other."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import said, seats, the_run, weights

FILE = Path(__file__).parents[1] / "examples" / "own_task.py"
SHORT = ("--epochs", "2", "--set", "records.tensorboard=false")

pytestmark = pytest.mark.usefixtures("one_thread")


def shoal(*words: str, at: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shoal", *words],
        cwd=at,
        capture_output=True,
        text=True,
        timeout=90,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    at = tmp_path_factory.mktemp("own")
    (at / "tasks").mkdir()
    shutil.copy(FILE, at / "tasks" / "mine.py")
    ended = seats(1, "train", "tasks/mine.py", *SHORT, "--set", "checkpoint.save_every=30", at=at)
    (worker,) = ended
    (run,) = (at / "runs").iterdir()
    assert f"shoal eval runs/{run.name} --recipe tasks/mine.py" in worker.text
    return at, weights(ended)


def test_a_task_that_predicts_nothing_says_so(trained):
    at, _ = trained
    run = str(the_run(at))
    ended = shoal("predict", run, "x", "--recipe", "tasks/mine.py", at=at)
    assert ended.returncode == 1 and "its task has no `predict`" in ended.stderr


def test_the_example_is_short_enough_to_read():
    assert len(FILE.read_text().splitlines()) < 60


@pytest.mark.parametrize(("workers", "strategy"), [(2, "ddp"), (3, "ddp"), (2, "zero1")])
def test_it_has_the_same_bits_at_any_number_of_workers(trained, tmp_path, workers, strategy):
    _, alone = trained
    (tmp_path / "tasks").mkdir()
    shutil.copy(FILE, tmp_path / "tasks" / "mine.py")
    ended = seats(workers, "train", "tasks/mine.py", *SHORT, "--strategy", strategy, at=tmp_path)
    assert weights(ended) == alone


def test_it_learns_and_is_measured(trained):
    at, _ = trained
    run = the_run(at)
    assert run.name.startswith("mine-")
    found = shoal("eval", str(run), "--recipe", "tasks/mine.py", "--json", at=at)
    loss = json.loads(found.stdout)["loss"]
    assert loss < 0.25  # of a mean square of about one half
    elsewhere = shoal("eval", str(run), "--recipe", str(at / "tasks/mine.py"), "--json", at=at)
    assert json.loads(elsewhere.stdout)["loss"] == loss


def test_a_runs_folder_cannot_choose_the_code_that_runs(trained, tmp_path):
    at, _ = trained
    run = shutil.copytree(the_run(at), tmp_path / "run")
    trap = tmp_path / "trap.py"
    trap.write_text("open('sprung', 'w')\ndef build(config, say): pass\n")
    manifest = json.loads((run / "run.json").read_text())
    manifest["config"]["recipe"] = str(trap)
    (run / "run.json").write_text(json.dumps(manifest))
    for words in (("eval", str(run)), ("predict", str(run)), ("train", "--resume", str(run))):
        ended = shoal(*words, at=tmp_path)
        assert ended.returncode == 1
        assert "is Python code of your own: name its file" in ended.stderr
    assert not (tmp_path / "sprung").exists()


def test_it_resumes_to_the_same_bits(trained):
    at, alone = trained
    run = the_run(at)
    newest = run / "checkpoints" / "step-00000063"
    shutil.rmtree(newest)
    assert (run / "checkpoints" / "step-00000060").is_dir()
    ended = seats(2, "train", "tasks/mine.py", "--resume", str(run), "--workers", "2", at=at)
    assert weights(ended) == alone


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "no such file"), ("def build(", "cannot be loaded: SyntaxError"),
     ("import nothing_of_that_name", "cannot be loaded: ModuleNotFoundError"),
     ("x = 1", "has no function `build(config, say)`")],
)  # fmt: skip
def test_a_file_that_is_no_recipe_is_one_sentence(tmp_path, content, told):
    if content is not None:
        (tmp_path / "mine.py").write_text(content)
    ended = seats(1, "train", "mine.py", at=tmp_path)
    assert ended[0].status == 1
    assert told in said(ended)
    assert "Traceback" not in said(ended)


def test_the_mean_of_means_is_another_loss():
    spec = importlib.util.spec_from_file_location("own_task", FILE)
    own = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own)
    task = own.build(None)
    samples = [task.samples("train")[n] for n in range(6)]
    torch.manual_seed(0)
    model = task.build_model()
    whole = task.loss(model, task.collate(samples))
    parts = [task.loss(model, task.collate(samples[n : n + 2])) for n in (0, 2, 4)]
    assert sum(part.total.item() for part in parts) == pytest.approx(whole.total.item(), rel=1e-6)
    assert sum(part.count for part in parts) == whole.count
    mean = whole.total.item() / whole.count
    of_means = sum(part.total.item() / part.count for part in parts) / 3
    assert abs(of_means - mean) > 1e-3 * mean
