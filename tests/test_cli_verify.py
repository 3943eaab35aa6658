"""`shoal verify`, as a person types it: what is equal, and what is not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "examples" / "own_task.py"
WORDS = ("mine.py", "--at", "1", "2", "--steps", "3")

pytestmark = pytest.mark.usefixtures("one_thread")


def verify(at: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shoal", "verify", *WORDS, *words],
        cwd=at, capture_output=True, text=True, timeout=90,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_equal_rows_are_equal_and_fit_a_line(tmp_path):
    (tmp_path / "mine.py").write_text(FILE.read_text())
    ended = verify(tmp_path)
    assert ended.returncode == 0, ended.stderr
    rows = [line for line in ended.stdout.splitlines() if line.rstrip().endswith(" equal")]
    assert len(rows) == 8 and all(len(line) <= 80 and "…" not in line for line in rows)
    last = ended.stdout.splitlines()[-1]
    assert last.startswith("EQUAL: all 8 rows have weights ") and len(last.split()[-1]) == 64


def test_a_loss_that_depends_on_the_worker_is_found_and_named(tmp_path):
    wrong = FILE.read_text().replace(
        "LossSum((errors", "LossSum(1.001 ** int(os.environ.get('RANK', 0)) * (errors"
    )
    (tmp_path / "mine.py").write_text(
        wrong.replace("import torch\n", "import os\nimport torch\n", 1)
    )
    ended = verify(tmp_path)
    assert ended.returncode == 1
    assert "\nNOT EQUAL: 2" in ended.stdout and "first at step 1" in ended.stdout
    found = json.loads(verify(tmp_path, "--json").stdout)
    assert not found["equal"] and [row["equal"] for row in found["rows"]].count(True) == 2
