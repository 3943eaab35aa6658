"""The next frame of a video: clips and their faults, the split, the task, what it predicts."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from recipe_video import SETTINGS, film, moving, prepare, write

from shoal.data.cache import cache_folder
from shoal.data.video import CONTEXT, Windows, split
from shoal.errors import ShoalError
from shoal.recipes.catalogue import configure, recipe
from shoal.tasks.base import Applied
from shoal.tasks.next_frame import FramePrediction, straight_line

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))


def opened(path: Path, *settings: str, said: list[str] | None = None) -> FramePrediction:
    config = configure(settings=[*SETTINGS, f"data.source={path}", *settings])
    lines = [] if said is None else said
    return recipe("video").build(config, lines.append)  # type: ignore[return-value]


def refusal(path: Path, *settings: str) -> str:
    with pytest.raises(ShoalError) as caught:
        opened(path, *settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def batch_of(windows: Windows, numbers: list[int]):
    return torch.utils.data.default_collate([windows[i] for i in numbers])


def trained(task: FramePrediction, steps: int = 100):
    torch.manual_seed(1)
    model = task.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        numbers = [(5 * step + i) % len(task.data.train) for i in range(8)]
        loss = task.loss(model, batch_of(task.data.train, numbers))
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
    return model.eval()


def frames_seen(windows: Windows) -> set[bytes]:
    seen = set()
    for i in range(len(windows)):
        sample = windows[i]
        for frame in (*sample["context"], sample["target"]):
            seen.add(frame.numpy().tobytes())
    return seen


def test_a_folder_of_frames_is_read_in_the_order_of_its_numbers(tmp_path):
    frames = moving(30)
    frames[:, 0, 0] = np.arange(30)  # a number in the picture
    folder = write(frames, tmp_path / "clip", first=2, name="frame-{}.png")  # 10 sorts before 2
    data = opened(folder).data
    assert (data.height, data.width, data.clips) == (16, 24, ("clip",))
    for windows in (data.train, data.held_out):
        for index, start in enumerate(windows.starts):
            sample = windows[index]
            assert (sample["context"].numpy() == frames[start : start + CONTEXT]).all()
            assert (sample["target"].numpy() == frames[start + CONTEXT]).all()
            assert sample["size"].tolist() == [16, 24]
    assert data.place(int(data.held_out.starts[0])) == ("clip", data.held_out.starts[0] + 5)


def test_a_video_file_is_a_clip_alone_or_in_a_folder(tmp_path):
    frames = moving(40)
    (tmp_path / "clips").mkdir()
    path = film(frames, tmp_path / "clips" / "one.avi")
    alone = opened(path).data
    first = alone.train[0]["target"].numpy()
    assert np.abs(first.astype(int) - frames[CONTEXT]).max() <= 2  # by way of colours
    write(frames, tmp_path / "clips" / "two")
    film(frames, tmp_path / "clips" / "three.mp4")
    (tmp_path / "clips" / "readme.txt").write_text("what is here")
    said: list[str] = []
    data = opened(tmp_path / "clips", said=said).data
    assert data.clips == ("one.avi", "three.mp4", "two")
    assert len(data.train) == 3 * len(alone.train)
    assert any("3 clips with 120 frames" in line for line in said)
    assert any("readme.txt is neither a video" in line for line in said)


def test_the_sides_of_the_split_share_no_frame_and_keep_a_distance(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (60, 16, 24)).astype(np.uint8)
    data = opened(write(frames, tmp_path / "clip")).data
    seen, held = frames_seen(data.train), frames_seen(data.held_out)
    assert not seen & held
    assert len(held) == 15
    assert len(seen) == 60 - 15 - CONTEXT


@pytest.mark.parametrize("holdout", [0.05, 0.2, 0.5, 0.9])
def test_windows_stay_in_their_clip_on_their_side_and_off_gaps(holdout):
    random = np.random.default_rng(0)
    clips = np.repeat(np.arange(5), [50, 7, 3, 90, 30])
    follows = random.random(len(clips)) > 0.05
    follows[[0, 50, 57, 60, 150]] = False
    train, held_out = split(clips, follows, holdout)
    for start in (*train, *held_out):
        assert len(set(clips[start : start + CONTEXT + 1])) == 1
        assert follows[start + 1 : start + CONTEXT + 1].all()
    for clip in range(5):
        ends = [s + CONTEXT for s in train if clips[s] == clip]
        begins = [s for s in held_out if clips[s] == clip]
        assert not (ends and begins) or max(ends) + CONTEXT < min(begins)
    assert not set(clips[held_out]) & {2}


def test_gaps_damage_and_other_sizes_are_said_and_sampled_around(tmp_path):
    said: list[str] = []
    task = recipe("video").build(configure(settings=prepare(tmp_path / "own")), said.append)
    for words in (
        "4 clips with 95 frames, 24x16 grey", "missing in 1 places", "1 damaged frames", "007.png",
        "2 clips of other sizes are fitted in", "of 1 clips nothing is held out",
    ):  # fmt: skip
        assert any(words in line for line in said), (words, said)
    sizes = {tuple(task.data.train[i]["size"].tolist()) for i in range(len(task.data.train))}
    assert sizes == {(16, 24), (16, 16), (12, 24)}
    clips = task.data.train.columns.flat("clip")
    firsts = [s for s in task.data.train.starts if clips[s] == 0]
    # The twelfth is missing, and what was the thirteenth is number 11 from 0.
    assert {6, 11} <= set(firsts)
    assert not {7, 8, 9, 10} & set(firsts)


def test_faults_of_clips_are_named(tmp_path):
    folder = write(moving(30), tmp_path / "clip")
    cv2.imwrite(str(folder / "031.png"), moving(1, height=20)[0])
    sentence = refusal(folder)
    assert "031.png has 24x20 pixels" in sentence
    assert "001.png has 24x16" in sentence
    (folder / "031.png").rename(folder / "first.png")
    assert "first.png has no number" in refusal(folder)
    (folder / "first.png").rename(folder / "b-7.png")
    assert "have the same number 7" in refusal(folder)
    (folder / "b-7.png").unlink()
    for number in (3, 4):
        (folder / f"00{number}.png").write_bytes(b"")
    sentence = refusal(folder, "data.unreadable=0.05")
    assert "2 of 30 frames are damaged" in sentence
    assert "003.png" in sentence
    opened(folder, "data.unreadable=0.1")


def test_faults_of_a_source_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("no video")
    (tmp_path / "fake.avi").write_text("no video")
    write(moving(9), tmp_path / "short" / "a")
    (tmp_path / "hollow" / "a").mkdir(parents=True)
    assert "empty holds no clip" in refusal(tmp_path / "empty")
    assert "note.txt is no video" in refusal(tmp_path / "note.txt")
    assert "no frame of" in refusal(tmp_path / "fake.avi")
    assert "a has no frames" in refusal(tmp_path / "hollow")
    assert "5 frames in a row to hold out: its longest clip has 9" in refusal(tmp_path / "short")
    assert "did you mean 'vtest'?" in refusal(Path("vtests"))


def test_prepared_data_is_opened_again_and_damage_is_named(tmp_path):
    folder = write(moving(40), tmp_path / "clip")
    first, said = opened(folder), list[str]()
    assert opened(folder, said=said).fingerprint == first.fingerprint
    assert not said
    assert opened(folder, "data.holdout=0.5").fingerprint != first.fingerprint
    [place] = (cache_folder() / "video").iterdir()
    about = (place / "video.json").read_text()
    (place / "video.json").write_text("{}")
    assert f"the prepared data in {place} is damaged" in refusal(folder)
    (place / "video.json").write_text(about)
    (place / "frame.bin").write_bytes(b"short")
    assert f"the prepared data in {place} is damaged" in refusal(folder)


def test_the_loss_of_a_ragged_batch_is_the_sum_of_its_samples(tmp_path):
    task = recipe("video").build(configure(settings=prepare(tmp_path / "own")))
    model = trained(task, steps=3)
    windows = task.data.train
    clips = windows.columns.flat("clip")[windows.starts]
    numbers = [int(np.flatnonzero(clips == clip)[0]) for clip in range(4)]
    whole = task.loss(model, batch_of(windows, numbers))
    parts = [task.loss(model, batch_of(windows, [n])) for n in numbers]
    # long and short fill the frame; of the narrow and the wide one a third or quarter is padding
    assert [part.count for part in parts] == [16 * 24, 16 * 16, 16 * 24, 12 * 24]
    assert whole.count == sum(part.count for part in parts)
    torch.testing.assert_close(whole.total, sum(p.total for p in parts), rtol=1e-5, atol=1e-3)
    means = torch.stack([part.total / part.count for part in parts]).mean()
    assert abs(means - whole.total / whole.count) > 1e-2


def test_what_lies_in_the_padding_changes_no_count_and_no_target(tmp_path):
    task = recipe("video").build(configure(settings=prepare(tmp_path / "own")))
    windows = task.data.train
    narrow = int(np.flatnonzero(windows.columns.flat("clip")[windows.starts] == 1)[0])
    batch = batch_of(windows, [narrow])
    model = task.build_model()
    before = task.loss(model, batch).total.item()
    batch["target"][:, :, 16:] = 255
    assert task.loss(model, batch).total.item() == before > 0


def test_a_fresh_model_copies_the_last_frame_and_learning_gives_it_skill(tmp_path):
    folder = write(moving(120), tmp_path / "clip")
    task = opened(folder)
    assert isinstance(task, Applied)
    fresh = task.scores(task.build_model().eval())
    baselines = task.baselines()
    assert fresh == pytest.approx(baselines["copy of the last frame"])
    assert fresh["skill"] == 0
    assert list(baselines) == ["copy of the last frame", "straight line", "mean of the context"]
    model = trained(task)
    scores = task.scores(model)
    assert all(type(v) is float for row in (scores, *baselines.values()) for v in row.values())
    assert next(iter(scores)) == "skill"
    assert scores["skill"] > 0.5 > max(row["skill"] for row in baselines.values())
    assert scores["psnr"] == pytest.approx(10 * math.log10(255**2 / scores["mse"]))
    metrics = task.metrics(
        model, batch_of(task.data.held_out, list(range(len(task.data.held_out))))
    )
    copied = baselines["copy of the last frame"]["mse"]
    ratio = metrics["of_copying"].numerator / metrics["of_copying"].denominator
    assert ratio == pytest.approx(scores["mse"] / copied, rel=0.1)


def test_a_straight_line_goes_on_as_before():
    context = torch.tensor([10, 20, 25, 32], dtype=torch.uint8).view(1, 4, 1, 1)
    assert straight_line(context).item() == 39


def test_the_next_frame_is_written_where_the_program_runs(tmp_path, monkeypatch):
    folder = write(moving(60), tmp_path / "clip")
    task = opened(folder)
    model = trained(task)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    later = moving(31)
    film(later[:30], tmp_path / "later.avi")
    for source, name in (("later.avi", "later-next.png"), ("later.avi", "later-next-2.png")):
        [row] = task.predict(model, str(tmp_path / source))
        assert row["next_frame"] == name
        written = cv2.imread(name, cv2.IMREAD_GRAYSCALE)
        error = ((written.astype(float) - later[30]) ** 2).mean()
        copied = ((later[29].astype(float) - later[30]) ** 2).mean()
        assert error < 0.5 * copied
        assert row["mse"] < 0.5 * row["mse_of_copying"]
    rows = list(task.predict(model, None))
    assert len(rows) == 5
    assert {"clip", "frame", "mse", "mse_of_copying"} == rows[0].keys()
    assert rows[0]["clip"] == "clip"
    assert rows[0]["frame"] > 45  # held out: of the last quarter


def test_what_cannot_be_predicted_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = opened(write(moving(40), tmp_path / "clips" / "clip"))
    write(moving(9), tmp_path / "clips" / "other")
    model = task.build_model().eval()
    (tmp_path / "a.txt").write_text("no video")
    write(moving(9), tmp_path / "torn")
    (tmp_path / "torn" / "007.png").unlink()
    for source, words in (
        ("gone.avi", "there is no video or folder of frames 'gone.avi'"),
        ("a.txt", "a.txt is no video"),
        ("clips", "clips holds 2 clips; name one"),
        ("torn", "torn ends with 2 frames in a row"),
    ):
        with pytest.raises(ShoalError, match=words):
            list(task.predict(model, source))
    assert not list(tmp_path.glob("*-next.png"))


def test_keys_without_effect_are_refused(tmp_path):
    folder = write(moving(40), tmp_path / "clip")
    for key in ("model.heads=2", "model.dropout=0.5", "data.text_field=words"):
        with pytest.raises(ShoalError, match="has no effect in the recipe 'video'"):
            opened(folder, key)
    with pytest.raises(ShoalError, match="multiple of 8"):
        opened(folder, "model.width=12").build_model()


@pytest.mark.slow
def test_real_video_is_predicted_far_better_than_by_copying(tmp_path, monkeypatch):
    monkeypatch.delenv("SHOAL_CACHE")
    words = ["train", "video", "--workers", "2", "--runs", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "shoal", *words], check=True)
    [results] = tmp_path.glob("*/results.json")
    scores = json.loads(results.read_text())["scores"]
    mine = scores.pop("this model")
    assert mine["skill"] > 0.4
    assert max(baseline["skill"] for baseline in scores.values()) == 0  # copying itself
