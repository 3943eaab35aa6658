"""The recipe `speech`: reading a user's recordings, the loss, decoding, and what is predicted."""

from __future__ import annotations

import gzip
import itertools
import json

import jiwer
import numpy as np
import pytest
import soundfile
import torch
from commands import judged
from recipe_speech import corpus, prepare, spoken, write
from torch.nn import functional as F

from shoal.data import audio
from shoal.data.cache import cache_folder
from shoal.data.config import DataConfig
from shoal.data.fetching import speech as fetching
from shoal.data.fetching.speech import spelled
from shoal.data.speech import frames_needed, frames_out, open_speech
from shoal.data.transcripts import Row, groups_of, normalised
from shoal.errors import ShoalError
from shoal.recipes.catalogue import configure, recipe
from shoal.tasks import spec_augment
from shoal.tasks.ctc import END, CharacterModel, beam_search, best_path

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def task(tmp_path):
    config = configure(settings=prepare(tmp_path / "data"))
    return recipe("speech").build(config)


def opened(folder, said=None, **settings):
    config = DataConfig(source=str(folder), **{"holdout": 0.3, **settings})
    return open_speech(config, (said if said is not None else []).append)


def refused(folder, **settings) -> str:
    with pytest.raises(ShoalError) as caught:
        opened(folder, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def recordings(folder, **texts: str):
    """A folder with `NAME.wav` for each NAME=text."""
    folder.mkdir(exist_ok=True)
    for name in texts:
        soundfile.write(folder / f"{name}.wav", spoken("abcd"), 8000)
    return write(folder, [(f"{name}.wav", text) for name, text in texts.items()])


# --- reading


def test_a_folder_is_read_in_order_and_what_was_converted_is_said(tmp_path):
    folder, said = corpus(tmp_path / "data"), []
    stereo = np.stack([spoken("dc"), spoken("dc")], axis=1)
    soundfile.write(folder / "dc.wav", stereo, 8000)
    data = opened(folder, said)
    assert data.alphabet == "abcd"
    assert len(data.train) + len(data.held_out) == 40
    assert "1 of 40 recordings 2 channels averaged to one" in said
    assert "1 of 40 recordings resampled from 16000 to 8000 Hz" in said
    texts = data.texts(data.train)
    names = [data.name(data.train, i) for i in range(len(texts))]
    assert [name.partition(".")[0] for name in names] == texts
    sample = data.train[texts.index("abc")]
    # 0.05 s, then three tones of 0.2 s with a pause of 0.05 s each: 0.8 s are 80 frames and one
    assert sample["features"].shape == (81, audio.MELS)
    assert sample["features"].dtype == torch.float16
    assert sample["target"].tolist() == [1, 2, 3]


def test_stereo_and_another_rate_sound_as_the_plain_recording_does(tmp_path):
    plain = spoken("abc")
    soundfile.write(tmp_path / "stereo.flac", np.stack([plain * 1.5, plain * 0.5], axis=1), 8000)
    soundfile.write(tmp_path / "fast.wav", spoken("abc", rate=44100), 44100)
    expected = audio.log_mel(plain)
    stereo = audio.read_recording(tmp_path / "stereo.flac", "x")
    assert (stereo.channels, stereo.rate) == (2, 8000)
    assert np.abs(audio.log_mel(stereo.samples) - expected).max() < 0.2
    fast = audio.log_mel(audio.read_recording(tmp_path / "fast.wav", "x").samples)
    assert fast.shape == expected.shape
    assert np.corrcoef(fast.flatten(), expected.flatten())[0, 1] > 0.95


def test_the_second_start_opens_what_was_prepared(tmp_path):
    folder, said = corpus(tmp_path / "data"), []
    first = opened(folder)
    second = opened(folder / "transcripts.csv", said)
    assert said == []
    assert second.fingerprint == first.fingerprint
    assert opened(folder, holdout=0.4).fingerprint != first.fingerprint
    soundfile.write(folder / "a.wav", spoken("b"), 8000)
    assert opened(folder).fingerprint != first.fingerprint


def test_json_lines_hold_the_same_as_csv(tmp_path):
    folder = corpus(tmp_path / "data")
    expected = opened(folder)
    rows = (folder / "transcripts.csv").read_text().split()[1:]
    (folder / "transcripts.csv").unlink()
    lines = [json.dumps(dict(zip(("file", "text"), row.split(","), strict=True))) for row in rows]
    (folder / "transcripts.jsonl").write_text("\n".join(lines) + "\n\n")
    found = opened(folder)
    assert found.texts(found.train) == expected.texts(expected.train)
    assert torch.equal(found.train[3]["features"], expected.train[3]["features"])


def test_damaged_recordings_are_skipped_up_to_the_limit(tmp_path):
    folder, said = corpus(tmp_path / "data"), []
    (folder / "abc.wav").write_bytes(b"no sound")
    assert "1 of 40 recordings cannot be read, more than data.unreadable = 0.01" in (
        message := refused(folder)
    )
    assert "row " in message and "abc.wav" in message
    data = opened(folder, said, unreadable=0.05)
    assert len(data.train) + len(data.held_out) == 39
    assert any("1 of 40 recordings skipped: cannot be read, such as" in line for line in said)


def test_a_text_that_ctc_cannot_emit_is_skipped_and_counted(tmp_path):
    folder, said = recordings(tmp_path / "x", a="one", b="two", c="three", d="four"), []
    soundfile.write(folder / "b.wav", spoken("a", seconds=0.03), 8000)  # 0.13 s: 4 frames out
    (folder / "transcripts.csv").write_text("file,text\na.wav,one\nb.wav,tooo\nc.wav,x\nd.wav,y\n")
    data = opened(folder, said, holdout=0.5)
    assert "1 of 4 recordings skipped: too short for their text" in said
    assert len(data.train) + len(data.held_out) == 3


def test_what_ctc_needs_is_exactly_what_has_a_finite_loss():
    for target in ([1], [1, 1], [1, 2, 2, 2], [2, 1, 2, 1]):
        for frames in range(1, 9):
            logits = torch.zeros(frames, 1, 3).log_softmax(2)
            loss = F.ctc_loss(
                logits, torch.tensor([target]), torch.tensor([frames]), torch.tensor([len(target)])
            )
            assert bool(torch.isfinite(loss)) == (frames >= frames_needed(target))


def test_long_recordings_are_skipped_before_they_are_read(tmp_path, monkeypatch):
    folder, said = recordings(tmp_path / "x", a="one", b="two", c="three"), []
    soundfile.write(folder / "b.wav", np.zeros(8000 * 31, np.float32), 8000)
    data = opened(folder, said, holdout=0.5)
    assert "1 of 3 recordings skipped: longer than 30 s" in said
    assert len(data.train) + len(data.held_out) == 2


# --- faults of a user's files


@pytest.mark.parametrize(
    ("csv", "sentence"),
    [
        ("file,txt\na.wav,one\n", "row 2 has no column 'text' (it has: file, txt); did you mean"),
        ("file,text\na.wav,one\nno.wav,x\nnot.wav,y\n", "row 3 names no.wav, which does not exist"),
        ("file,text\na.wav,one\nno.wav,x\nnot.wav,y\n", "and 1 more rows do likewise"),
        ("file,text\na.wav,one\na.wav,two\n", "row 3 names a.wav, as row 2 does"),
        ("file,text\na.wav,one\nb.wav,...\n", "row 3 (b.wav): text holds no letter"),
        ("file,text\na.wav,one, two\n", "row 2 has 3 values, but the head has 2 columns"),
        ("file,text\n../a.wav,one\n", "row 2 names '../a.wav', which is no path inside"),
        ("file,text\n/etc/passwd,one\n", "row 2 names '/etc/passwd', which is no path inside"),
        ("file,text\n,one\n", "row 2 names no recording"),
        ('file,text\na.wav,"one\n', "is not CSV: unexpected end of data"),
        ("file,text,group\na.wav,one,x\nb.wav,two,\n", "row 3: group is empty"),
        ("file,text\n", "is empty: it holds no row"),
        ("", "is empty: it holds no row"),
        ("file,text\na.wav,one\nb.wav,One!\n", "has 1 group to split by, and needs two"),
    ],
)
def test_faults_of_transcripts_are_named_with_their_row(tmp_path, csv, sentence):
    folder = recordings(tmp_path / "x", a="one", b="two")
    (folder / "transcripts.csv").write_text(csv)
    assert sentence in refused(folder)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "row 1 is not JSON"),
        ("[1]", "row 1 is a list, not an object"),
        ('{"file": "a.wav", "text": null}', "row 1: 'text' is a NoneType, not text"),
        (
            '{"file": "a.wav", "text": "one"}\n{"file": "b", "text": "two", "group": "x"}',
            "row 2 has a group, and the rows before it have none",
        ),
        ('{"file": 3, "text": "one"}', "row 1: 'file' is a int, not text"),
    ],
)
def test_faults_of_json_lines_are_named_with_their_row(tmp_path, line, sentence):
    folder = recordings(tmp_path / "x", a="one")
    (folder / "transcripts.csv").unlink()
    (folder / "transcripts.jsonl").write_text(line)
    assert sentence in refused(folder)


def test_faults_of_the_folder_are_named(tmp_path):
    folder = recordings(tmp_path / "x", a="one", b="two")
    (folder / "transcripts.csv").write_bytes(b"file,text\na.wav,\xe9\n")
    assert "transcripts.csv is not UTF-8: byte 0xe9 at offset 16" in refused(folder)
    (folder / "transcripts.jsonl").write_text("")
    assert "holds both transcripts.csv and transcripts.jsonl" in refused(folder)
    (folder / "transcripts.jsonl").unlink()
    (folder / "transcripts.csv").rename(folder / "texts.csv")
    assert "it holds texts.csv: rename it" in refused(folder)
    assert "is no folder" in refused(folder / "a.wav")
    assert "did you mean 'prompts'" in refused("promts")
    assert "'no_such' " in refused(recordings(tmp_path / "y", a="one"), group_field="no_such")


@pytest.mark.parametrize(
    ("samples", "sentence"),
    [
        (np.array([0, np.nan, 0, 0], np.float32), "holds a sample that is no finite number"),
        (np.zeros(0, np.float32), "is empty: it holds no sample"),
    ],
)
def test_faults_of_a_recording_are_named_with_its_row(tmp_path, samples, sentence):
    folder = recordings(tmp_path / "x", a="one", b="two")
    soundfile.write(folder / "b.wav", samples, 8000, subtype="FLOAT")
    message = refused(folder)
    assert sentence in message and "row 3: b.wav" in message


def test_a_split_without_recordings_is_refused(tmp_path):
    folder = recordings(tmp_path / "x", a="one", b="two")
    for name in ("a", "b"):
        soundfile.write(folder / f"{name}.wav", np.zeros(8000 * 31, np.float32), 8000)
    assert "no recording left to learn from" in refused(folder)


def test_damaged_prepared_data_is_named_and_can_be_deleted(tmp_path):
    folder = corpus(tmp_path / "data")
    opened(folder)
    [prepared] = (cache_folder() / "speech").iterdir()
    (prepared / "features.bin").write_bytes(b"")
    assert f"the prepared data in {prepared} is damaged" in refused(folder)
    (prepared / "alphabet.json").write_text("[")
    assert "is damaged" in refused(folder)


# --- texts and the split


def test_texts_are_normalised_to_what_is_spoken():
    assert normalised("  It\u2019s 5 O'Clock\u2014NOW!\n") == "it's 5 o'clock now"
    assert normalised("'quoted' \u00c4rger \uff21") == "quoted \u00e4rger a"
    assert normalised("... [!] --") == ""


def test_the_prompts_texts_are_spelled_as_they_are_spoken():
    assert spelled(" press * or 42 (tone plays), at [@]") == "press star or four two , at"
    assert spelled("<beep ascending>") == spelled("[tones]") == ""


def test_the_prompts_become_a_folder_as_users_bring_it(tmp_path, monkeypatch):
    sounds = tmp_path / "usr/share/asterisk/sounds/en_US_f_Allison"
    (sounds / "digits").mkdir(parents=True)
    for name in ("hello", "digits/1", "beep", "silent"):
        soundfile.write(sounds / f"{name}.wav", spoken("abcd"), 8000)
    soundfile.write(sounds.parent / "outside.wav", spoken("a"), 8000)
    texts = tmp_path / "usr/share/doc/asterisk-core-sounds-en"
    texts.mkdir(parents=True)
    lines = (
        "; a comment: no row\n\nhello: Hello, you!\ndigits/1: 1\nbeep: [beep]\nsilent: (quiet)\n"
    )
    lines += "gone: no recording\n../outside: no way out\n"
    (texts / "core-sounds-en.txt.gz").write_bytes(gzip.compress(lines.encode()))
    monkeypatch.setattr(fetching, "debian", lambda *_: tmp_path)
    files = tmp_path / "files"
    files.mkdir()
    fetching.prompts(tmp_path, files, [].append)
    data = opened(files)
    assert sorted(data.texts(data.train) + data.texts(data.held_out)) == ["hello you", "one"]
    assert len([path for path in files.rglob("*") if path.is_file()]) == 3


def test_texts_that_share_a_run_of_words_are_one_group():
    texts = [
        *("yes", "yes", "to mute or unmute yourself press one", "no"),
        *("or to mute or unmute yourself press nine", "to mute press one"),
    ]
    groups = groups_of([Row("", "", text, None) for text in texts])
    assert groups[0] == groups[1] != groups[3]
    assert groups[2] == groups[4] != groups[5]


def test_no_group_is_on_both_sides(tmp_path):
    folder = recordings(tmp_path / "x", **{f"r{i}": f"text {i}" for i in range(20)})
    rows = "".join(f"r{i}.wav,text {i},speaker{i % 4}\n" for i in range(20))
    (folder / "transcripts.csv").write_text("file,text,group\n" + rows)
    data = opened(folder)
    sides = []
    for split in (data.train, data.held_out):
        numbers = [int(data.name(split, i)[1:-4]) for i in range(len(split))]
        sides.append({number % 4 for number in numbers})
    assert not sides[0] & sides[1] and sides[0] | sides[1] == {0, 1, 2, 3}


# --- the loss


def ragged(task, count=6):
    held_out = task.samples("train")
    return [held_out[i] for i in np.linspace(0, len(held_out) - 1, count).astype(int)]


def test_the_loss_of_a_ragged_batch_is_the_sum_over_its_recordings(task):
    torch.manual_seed(1)
    model, samples = task.build_model().eval(), ragged(task)
    assert len({len(sample["features"]) for sample in samples}) > 2
    whole = task.loss(model, task.collate(samples))
    parts = [task.loss(model, task.collate([sample])) for sample in samples]
    total = sum(part.total.item() for part in parts)
    assert whole.total.item() == pytest.approx(total, rel=2e-6)
    assert (
        whole.count == sum(part.count for part in parts) == sum(len(s["target"]) for s in samples)
    )
    mean_of_means = sum(part.total.item() / part.count for part in parts) / len(parts)
    assert abs(mean_of_means / (total / whole.count) - 1) > 0.01


def test_padding_changes_neither_gradients_nor_depends_on_its_values(task):
    torch.manual_seed(1)
    model, samples = task.build_model().eval(), ragged(task)
    batch = dict(task.collate(samples))
    gradients = []
    for changed in (False, True):
        if changed:
            length = batch["features"].shape[1]
            outside = torch.arange(length) >= batch["frames"][:, None]
            batch["features"] = batch["features"].masked_fill(outside[:, :, None], 77.0)
        task.loss(model, batch).total.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        model.zero_grad()
    for sample in samples:
        task.loss(model, task.collate([sample])).total.backward()
    for name, (parameter, first, second) in zip(
        dict(model.named_parameters()), zip(model.parameters(), *gradients, strict=True),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(first, second), name
        torch.testing.assert_close(parameter.grad, first, rtol=1e-3, atol=2e-4)


def test_gradients_repeat_their_bits_and_reach_every_parameter(task):
    model = task.build_model().train()
    batch = task.collate(ragged(task))
    found = []
    for _ in range(3):
        torch.manual_seed(7)
        model.zero_grad()
        task.loss(model, batch).total.backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert all(
        torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True)
    )
    assert all(bool(gradient.any()) for gradient in found[0])


def test_augmentation_is_of_training_only_and_follows_the_random_state(task):
    torch.manual_seed(1)
    model, batch = task.build_model(), task.collate(ragged(task))

    def loss(seed: int, *, training: bool) -> float:
        torch.manual_seed(seed)
        return task.loss(model.train(training), batch).total.item()

    assert loss(1, training=False) == loss(2, training=False)
    assert loss(1, training=True) == loss(1, training=True) != loss(2, training=True)


def test_no_speed_makes_a_text_too_long_for_its_recording(task, monkeypatch):
    monkeypatch.setattr(spec_augment, "STRETCH", 0.95)
    model = task.build_model().train()
    batch = task.collate(ragged(task))
    losses = []
    for seed in range(20):
        torch.manual_seed(seed)
        losses.append(task.loss(model, batch).total.item())
    assert np.isfinite(losses).all()


def test_masks_lie_inside_the_recordings():
    features, frames = torch.ones(2, 50, 40), torch.tensor([50, 20])
    torch.manual_seed(0)
    masked = spec_augment.mask(features, frames)
    hidden = masked.eq(0)
    assert hidden.any() and 0.3 < masked.mean() < 1
    for row, length in enumerate(frames.tolist()):
        silent = hidden[row].all(dim=1)
        assert silent.sum() <= 2 * (0.15 * length + 1)
        assert not silent[length:].any()


# --- decoding


def test_the_best_path_merges_repeats_and_drops_blanks():
    path = [0, 1, 1, 0, 1, 2, 2, 0]
    assert best_path(F.one_hot(torch.tensor(path), 3).float()) == [1, 1, 2]


def test_a_wide_beam_finds_the_likeliest_text_over_all_alignments():
    torch.manual_seed(3)
    language = CharacterModel(["ab", "ba"], "ab", order=2)
    for _ in range(20):
        log_p = torch.randn(5, 3).mul(2).log_softmax(1)
        sums: dict[str, float] = {}
        for path in itertools.product(range(3), repeat=5):
            rows = F.one_hot(torch.tensor(path), 3).float()
            text = "".join("ab"[s - 1] for s in best_path(rows))
            p = float(log_p[range(5), path].sum().exp())
            sums[text] = sums.get(text, 0.0) + p
        likeliest = max(sums, key=sums.__getitem__)
        assert beam_search(log_p, language, width=100, weight=0.0, bonus=0.0) == likeliest


def test_the_language_model_is_a_distribution_and_prefers_what_it_has_read():
    language = CharacterModel(["press one", "press two"], " enoprstw", order=4)
    for before in (END, END + "pre", END + "zzz"):
        total = sum(np.exp(language.log(c, before)) for c in language.alphabet + END)
        assert total == pytest.approx(1)
    assert language.log("s", END + "pres") > language.log("t", END + "pres")
    tie = torch.full((1, 10), -20.0)
    tie[0, [0, 7, 8]] = torch.tensor([-9.0, -0.7, -0.69])  # s and t sound almost alike
    tie = torch.cat([torch.eye(10).index_select(0, torch.tensor([5, 6, 2, 7, 0])) * 20 - 20, tie])
    assert best_path(tie)[-1] == 8
    assert beam_search(tie.log_softmax(1), language).startswith("press")


# --- use


def test_a_small_network_learns_tones_and_writes_them_down(task, tmp_path):
    torch.manual_seed(0)
    model = task.build_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train = task.samples("train")
    for step in range(150):
        chosen = [train[(step * 7 + 5 * i) % len(train)] for i in range(8)]
        total, count = task.loss(model, task.collate(chosen))
        optimizer.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    scores, baselines = task.scores(model), task.baselines()
    assert list(scores) == ["cer", "wer", "greedy_cer", "greedy_wer"]
    assert scores["greedy_cer"] < 0.6 * min(each["cer"] for each in baselines.values())
    assert baselines["silence"] == {"cer": 1.0, "wer": 1.0}

    soundfile.write(tmp_path / "new.wav", spoken("bd"), 8000)
    [row] = task.predict(model, str(tmp_path / "new.wav"))
    assert row["file"].endswith("new.wav") and jiwer.cer("bd", row["text"]) <= 0.5
    rows = list(task.predict(model, str(tmp_path / "data")))
    assert len(rows) == 40 and len({row["file"] for row in rows}) == 40
    shown = list(task.predict(model, None))
    assert 0 < len(shown) <= 5 and all(row["truth"] for row in shown)
    json.dumps([*rows, *shown])


def test_metrics_are_the_loss_and_edits_of_the_same_recordings(task):
    torch.manual_seed(1)
    model, batch = task.build_model().eval(), task.collate(ragged(task))
    metrics = task.metrics(model, batch)
    loss = task.loss(model, batch)
    assert metrics["loss"].numerator == pytest.approx(loss.total.item())
    assert metrics["loss"].denominator == metrics["cer"].denominator == loss.count


def test_what_cannot_be_predicted_is_named(task, tmp_path):
    model = task.build_model().eval()
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    (tmp_path / "nothing").mkdir()
    soundfile.write(tmp_path / "long.wav", np.zeros(8000 * 31), 8000)
    for source, sentence in (
        ("some text", "there is no recording 'some text'"),
        ("long text " * 50, "there is no recording 'long text"),
        (str(tmp_path / "bad.wav"), "bad.wav cannot be read as a recording"),
        (str(tmp_path / "nothing"), "nothing holds no .wav, .flac, .ogg, .mp3 file"),
        (str(tmp_path / "long.wav"), "long.wav is 31 s long, and 30 s is the most"),
    ):
        with pytest.raises(ShoalError, match=sentence.replace(".", "[.]")):
            list(task.predict(model, source))


def test_digital_silence_is_heard_as_zeros():
    assert not audio.log_mel(np.zeros(800, np.float32)).any()
    assert audio.log_mel(np.zeros(1, np.float32)).shape == (1, audio.MELS)
    assert frames_out(1) == 1


@pytest.mark.slow
def test_the_prompts_are_recognised_better_than_by_any_baseline(tmp_path):
    """Trains as `shoal train speech --workers 2` does, on the real recordings."""
    scores, baselines = judged("speech", at=tmp_path)
    assert scores["cer"] < 0.45 and scores["wer"] < 0.75
    for figures in baselines.values():
        assert scores["cer"] < figures["cer"] - 0.2
        assert scores["wer"] < figures["wer"] - 0.15
