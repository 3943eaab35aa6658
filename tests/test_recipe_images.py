"""Images by class: the user's folder, its faults, the split, the task, and what it predicts."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import launched
from PIL import Image
from recipe_images import SETTINGS, corpus, drawn, prepare

from shoal.data import image_files
from shoal.data.cache import cache_folder
from shoal.data.fetching.arrays import array_in
from shoal.data.fetching.images import near_copies
from shoal.data.images import mirrors
from shoal.data.split import share_of
from shoal.errors import ShoalError
from shoal.recipes.catalogue import configure, recipe
from shoal.tasks.base import Applied
from shoal.tasks.image_classification import ImageClassification, macro_f1, moved

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))


def opened(folder: Path, *settings: str, said: list[str] | None = None) -> ImageClassification:
    config = configure(settings=[*SETTINGS, f"data.source={folder}", *settings])
    lines = [] if said is None else said
    return recipe("images").build(config, lines.append)  # type: ignore[return-value]


def refusal(folder: Path, *settings: str) -> str:
    with pytest.raises(ShoalError) as caught:
        opened(folder, *settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def trained(task: ImageClassification, lr: float, steps: int = 80):
    torch.manual_seed(1)
    model = task.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    samples = task.samples("train")
    for step in range(steps):
        batch = batch_of(task, [(7 * step + i) % len(samples) for i in range(12)])
        loss = task.loss(model, batch)
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
    return model.eval()


def batch_of(task: ImageClassification, numbers: list[int]):
    samples = task.samples("train")
    return torch.utils.data.default_collate([samples[i] for i in numbers])


def test_a_folder_is_read_as_it_lies_there(tmp_path):
    task = opened(corpus(tmp_path / "own"), "data.unreadable=0")
    data = task.data
    assert data.classes == ("frame", "lying", "standing")
    assert (len(data.train) + len(data.held_out), str(data.shape)) == (48, "12x12 grey")
    for split in (data.train, data.held_out):
        for index, number in enumerate(split.numbers):
            label, name = data.names[number].split("/")
            sample = split[index]
            assert data.classes[sample["label"]] == label
            assert (sample["image"][0].numpy() == drawn(label, int(name[:2]))).all()


def test_other_sizes_colours_and_damaged_files_are_said(tmp_path):
    said: list[str] = []
    settings = prepare(tmp_path / "own")
    (tmp_path / "own" / "lying" / "notes.txt").write_text("not an image")
    task = recipe("images").build(configure(settings=settings), said.append)
    assert str(task.data.shape) == "12x12 colour"
    for words in (
        "50 images of 3 classes", "1 images of another size", "read as colour",
        "1 damaged images are left out", "damaged.png", "1 files that are no images",
    ):  # fmt: skip
        assert any(words in line for line in said), (words, said)


@pytest.mark.parametrize(
    ("mode", "value", "pixel"),
    [
        ("1", 1, 255), ("L", 70, 70), ("I;16", 70 * 256 + 9, 70), ("P", 0, 0),
        ("LA", (70, 255), 70), ("LA", (70, 0), 0), ("RGBA", (70, 70, 70, 255), 70),
    ],
)  # fmt: skip
def test_every_way_to_hold_a_pixel_becomes_a_byte(tmp_path, mode, value, pixel):
    path = tmp_path / "a.png"
    Image.new(mode, (10, 8), value).save(path)
    read = image_files.read_image(path, image_files.Shape(8, 10, 1))
    assert read.shape == (1, 8, 10)
    assert (read == pixel).all()


def test_a_photograph_is_turned_as_its_camera_says(tmp_path):
    image = Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), 16, axis=0).repeat(8, axis=1))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the left edge is the top
    image.save(tmp_path / "a.png", exif=exif)
    read = image_files.read_image(tmp_path / "a.png", image_files.Shape(16, 16, 1))
    assert (read[0, :8] == 0).all()
    assert (read[0, 8:] == 255).all()


def test_large_images_shrink_to_64_and_tiny_ones_grow_to_8():
    found = image_files.Survey()
    found.sizes[(640, 320)] += 1
    assert str(found.shape) == "64x32 grey"
    found.sizes[(4, 12)] += 2
    found.colours[True] += 1
    assert str(found.shape) == "8x12 colour"


def test_faults_of_a_folder_are_named(tmp_path):
    folder = corpus(tmp_path / "own", count=4)
    (folder / "empty").mkdir()
    assert "the class 'empty' has no image" in refusal(folder)
    (folder / "empty").rmdir()
    (folder / "loose.png").write_bytes(b"")
    assert "loose.png lies beside the classes" in refusal(folder)
    assert "is a file; images come as a folder" in refusal(folder / "loose.png")
    (folder / "loose.png").unlink()
    (folder / "one" / "class").mkdir(parents=True)
    assert "and has only 'class'" in refusal(folder / "one")
    assert "and has none" in refusal(folder / "one" / "class")
    assert "no data 'animels' (images)" in refusal(Path("animels"))
    assert "did you mean 'animals'?" in refusal(Path("animels"))


def test_a_class_that_is_empty_is_refused_also_after_the_others_were_prepared(tmp_path):
    folder = corpus(tmp_path / "own", count=4)
    opened(folder)
    (folder / "empty").mkdir()
    assert "the class 'empty' has no image" in refusal(folder)


def test_two_workers_say_once_what_was_found(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    settings = [word for setting in prepare(own) for word in ("--set", setting)]
    process = launched("train", *settings, "--steps", "2", "--workers", "2", at=tmp_path)
    text, _ = process.communicate(timeout=90)
    assert process.returncode == 0, text
    assert text.count("50 images of 3 classes") == 1
    assert "another process of this host" not in text


def test_damaged_images_beyond_the_allowed_share_are_refused_with_the_first(tmp_path):
    folder = corpus(tmp_path / "own", count=4)
    for number in (1, 2):
        (folder / "lying" / f"0{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    sentence = refusal(folder, "data.unreadable=0.1")
    assert "more than 10.00% of the 12 images are damaged" in sentence
    assert re.search(r"cannot read \S+lying/01.png as an image", sentence)
    opened(folder, "data.unreadable=0.2")
    for path in (folder / "lying").iterdir():
        path.write_bytes(b"")
    assert "no image of the class 'lying' can be read" in refusal(folder, "data.unreadable=0.5")
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    assert "none of the 12 files can be read" in refusal(folder)


def test_an_image_that_claims_to_be_enormous_is_damaged(tmp_path):
    path = tmp_path / "a.png"
    Image.new("L", (8, 8)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 60000, 60000)
    path.write_bytes(data)
    with pytest.raises(ShoalError, match=r"cannot read \S+a.png as an image"):
        image_files.read_image(path, image_files.Shape(8, 8, 1))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,grup\n", "no column 'group' (it has 'grup')"),
        ("file,group\nlying/00.png,a\nlying/99.png,a\n", "row 3: there is no image 'lying/99.png'"),
        ("file,group\nlying/00.png,\n", "row 2: the group of 'lying/00.png' is empty"),
        ("file,group\nlying/00.png,a\nlying/00.png,b\n", "row 3: 'lying/00.png' has the group 'a'"),
        ("file,group\nlying/00.png,\xff\n", "is not UTF-8"),
    ],
)
def test_faults_of_the_groups_are_named_with_their_row(tmp_path, text, words):
    folder = corpus(tmp_path / "own", count=2)
    (folder / "groups.csv").write_bytes(text.encode("latin-1"))
    assert words in refusal(folder)


def test_no_group_and_no_copy_of_an_image_is_on_both_sides(tmp_path):
    folder = corpus(tmp_path / "own", count=30)
    rows = [f"{p.relative_to(folder)},{p.parent.name}{p.name[0]}" for p in folder.glob("*/*.png")]
    rows = [row for row in rows if not row.startswith("frame")]  # those are alone
    (folder / "groups.csv").write_text("file,group\n" + "\n".join(rows))
    for number in range(20):  # equal to an image of a group, and not listed
        Image.fromarray(drawn("lying", 3)).save(folder / "lying" / f"copy{number:02}.png")
    said: list[str] = []
    data = opened(folder, said=said).data
    assert any(line.startswith("20 images are equal") for line in said)
    sides = {
        name: {data.names[n] for n in split.numbers}
        for name, split in (("train", data.train), ("held", data.held_out))
    }
    for label in ("lying", "standing"):
        for tens in "012":
            of_group = {f"{label}/{tens}{ones}.png" for ones in range(10)}
            assert any(of_group <= side for side in sides.values())
    copies = {n for n in data.names if "copy" in n} | {"lying/03.png"}
    assert any(copies <= side for side in sides.values())


def test_a_class_without_training_images_is_refused_by_name(tmp_path):
    folder = corpus(tmp_path / "own", count=3)
    names = ["frame", "lying", "standing"]
    # A group for each class, named so that the first one alone is held out.
    asked = sorted(map(str, range(50)), key=share_of)
    groups = dict(zip(names, [asked[0], *asked[-2:]], strict=True))
    rows = [f"{label}/0{i}.png,{groups[label]}" for label in names for i in range(3)]
    (folder / "groups.csv").write_text("file,group\n" + "\n".join(rows))
    sentence = refusal(folder)
    assert "the class 'frame' is missing from the training split: all of its 3 images" in sentence


def test_prepared_data_is_opened_again_and_damage_is_named(tmp_path):
    folder = corpus(tmp_path / "own")
    first = opened(folder)
    said: list[str] = []
    again = opened(folder, said=said)
    assert again.fingerprint == first.fingerprint
    assert not any("images of" in line for line in said)  # nothing was prepared
    assert opened(folder, "data.holdout=0.5").fingerprint != first.fingerprint
    [place] = (cache_folder() / "images").iterdir()
    about = (place / "images.json").read_text()
    for damaged in ("{", "{}", "[]"):
        (place / "images.json").write_text(damaged)
        assert "is damaged" in refusal(folder)
    (place / "images.json").write_text(about)
    (place / "image.bin").write_bytes(b"short")
    assert f"the prepared data in {place} is damaged" in refusal(folder)


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_the_loss_of_a_batch_is_the_sum_of_its_images(tmp_path, kind):
    task = opened(corpus(tmp_path / "own"), f"model.kind={kind}")
    model = task.build_model().eval()
    whole = task.loss(model, batch_of(task, list(range(7))))
    parts = [task.loss(model, batch_of(task, n)) for n in ([0, 1], [2, 3, 4, 5], [6])]
    assert whole.count == sum(part.count for part in parts) == 7
    torch.testing.assert_close(whole.total, sum(p.total for p in parts), rtol=1e-5, atol=1e-5)
    means = torch.stack([part.total / part.count for part in parts]).mean()
    assert abs(means - whole.total / whole.count) > 1e-4


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_a_model_learns_shapes_beats_the_baselines_and_predicts(tmp_path, kind):
    folder = corpus(tmp_path / "own")
    task = opened(folder, f"model.kind={kind}", f"model.width={8 if kind == 'cnn' else 32}")
    model = trained(task, lr=1e-2 if kind == "cnn" else 3e-3)
    scores, baselines = task.scores(model), task.baselines()
    assert isinstance(task, Applied)
    assert list(baselines) == ["most common class", "logistic regression", "nearest neighbours"]
    assert all(type(v) is float for row in (scores, *baselines.values()) for v in row.values())
    assert scores["accuracy"] > 0.9 > baselines["most common class"]["accuracy"]
    lying = folder / "lying" / "03.png"
    [row] = task.predict(model, str(lying))
    assert row == {"file": str(lying), "class": "lying", "probability": row["probability"]}
    assert len(list(task.predict(model, str(folder)))) == 48
    held_out = list(task.predict(model, None))
    assert sum(row["class"] == row["truth"] for row in held_out) >= 0.8 * len(held_out) > 5
    (tmp_path / "text.png").write_text("no image")
    for source, words in (
        (tmp_path / "text.png", r"cannot read \S+text.png as an image: unknown or damaged"),
        (tmp_path / "gone.png", "there is no image or folder"),
        (tmp_path / "cache" / "locks", "holds no image"),
    ):
        with pytest.raises(ShoalError, match=words):
            list(task.predict(model, str(source)))


def test_training_moves_images_and_measuring_does_not(tmp_path):
    task = opened(corpus(tmp_path / "own"))
    model, batch = task.build_model(), batch_of(task, [0, 1, 2])
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(float(task.loss(model, batch).total.detach()))
    assert losses[0] == losses[1] != losses[2]
    model.eval()
    assert torch.equal(task.loss(model, batch).total, task.loss(model, batch).total)


def test_a_moved_image_is_still_the_image_and_is_mirrored_only_when_asked():
    image = torch.zeros(64, 1, 20, 20, dtype=torch.uint8)
    image[:, :, 4:16, 3:8] = 200  # on the left
    torch.manual_seed(0)
    same = moved(image, mirror=False)
    assert (same.flatten(1).sum(1) / image[0].sum() - 1).abs().max() < 0.5
    assert (same[..., :10].sum((1, 2, 3)) > same[..., 10:].sum((1, 2, 3))).all()
    turned = moved(image, mirror=True)
    right = (turned[..., 10:].sum((1, 2, 3)) > turned[..., :10].sum((1, 2, 3))).float().mean()
    assert 0.25 < right < 0.75


def test_mirror_images_are_valid_where_the_data_says_so():
    random = np.random.default_rng(0)
    ramp = np.linspace(0, 200, 12)
    labels = np.arange(80) % 2
    rising = [ramp if label else ramp[::-1] for label in labels]  # mirrored: the other class
    noise = random.integers(0, 20, (80, 1, 12, 12))
    one_sided = (np.array(rising)[:, None, None, :] + noise).astype(np.uint8)
    upright = one_sided.transpose(0, 1, 3, 2).copy()  # mirrored: the same class
    assert not mirrors(one_sided, labels)
    assert mirrors(upright, labels)


def test_macro_f1_is_that_of_scikit_learn():
    from sklearn.metrics import f1_score

    random = np.random.default_rng(0)
    truth, guess = random.integers(0, 4, 50), random.integers(0, 3, 50)
    assert macro_f1(guess, truth) == pytest.approx(f1_score(truth, guess, average="macro"))


def test_keys_without_effect_and_unknown_kinds_are_refused(tmp_path):
    folder = corpus(tmp_path / "own", count=4)
    assert "must be one of cnn, vit" in refusal(folder, "model.kind=cmm")
    assert "model.heads has no effect" in refusal(folder, "model.heads=2")
    with pytest.raises(ShoalError, match="halves an image 5 times"):
        opened(folder, "model.depth=5").build_model()
    with pytest.raises(ShoalError, match="multiple of 8"):
        opened(folder, "model.width=12").build_model()
    with pytest.raises(ShoalError, match=r"of model.heads = 3"):
        sizes = ("model.depth=3", "model.width=none", "model.heads=3")
        opened(folder, "model.kind=vit", *sizes).build_model()
    with pytest.raises(ShoalError, match=r"data.vocab_size has no effect"):
        opened(folder, "data.vocab_size=999")


def array_file(values: np.ndarray) -> bytes:
    """As the package `animal-mnist` holds an array."""
    import pickle

    data = pickle.dumps(values, protocol=4)
    return data.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")


@pytest.mark.parametrize("values", [np.arange(300).reshape(3, 100), np.eye(4, dtype=np.uint8)])
def test_an_array_is_read_without_running_anything(values):
    read = array_in(array_file(values))
    assert read.dtype == values.dtype
    assert (read == values).all()


def test_whatever_else_is_in_an_array_file_is_refused():
    class Harmful:
        def __reduce__(self):
            return (exec, ("raise SystemExit",))

    import pickle

    good = array_file(np.arange(300))
    for data in (
        pickle.dumps(Harmful()), pickle.dumps([1, 2]), pickle.dumps((1, 2)), b"", good[:-40],
        good.replace(b"ndarray", b"fromstr"), array_file(np.zeros(300)), b"\x80\x04t.",
        b"\x80\x04K\x01R.", b"\x80\x04h\x05.", b"\x80\x04.",
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"."):
            array_in(data)


def test_images_that_are_alike_in_a_chain_or_mirrored_are_copies():
    base = np.zeros((5, 20, 20), np.uint8)
    base[0, 2:12, 2:12] = 200
    base[1] = base[0]
    base[1, 2, 2] = 0  # a pixel differs
    base[2] = base[1][:, ::-1]
    base[3, 14:18, 14:18] = 255
    base[4] = 0
    assert near_copies(base).tolist() == [0, 0, 0, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cnn", "vit"])
@pytest.mark.parametrize("source", ["animals", "digits"])
def test_real_images_are_told_better_than_by_any_baseline(tmp_path, monkeypatch, source, kind):
    monkeypatch.delenv("SHOAL_CACHE")
    words = ["--data", source, "--set", f"model.kind={kind}", "--runs", str(tmp_path)]
    command = [sys.executable, "-m", "shoal", "train", "images", "--workers", "2", *words]
    subprocess.run(command, check=True)
    [results] = tmp_path.glob("*/results.json")
    scores = json.loads(results.read_text())["scores"]
    mine = scores.pop("this model")
    for baseline in scores.values():
        assert mine["accuracy"] > baseline["accuracy"] + 0.01
        assert mine["macro_f1"] > baseline["macro_f1"] + 0.01
