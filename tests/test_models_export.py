"""A trained decoder as a Hugging Face folder."""

import json
import os

import pytest
import torch
import transformers

from shoal.data.tokenizer import Tokenizer, _trained, load_tokenizer
from shoal.errors import ShoalError
from shoal.models.config import ModelConfig
from shoal.models.decoder import Decoder
from shoal.models.export import export
from shoal.models.hugging_face import load

torch.set_num_threads(1)  # a second thread costs more than it brings at these sizes

VOCAB = 270


@pytest.fixture(scope="module")
def tokenizer():
    inner = _trained(["the quick brown fox jumps over the lazy dog " * 20], VOCAB)
    end = inner.token_to_id("<|endoftext|>")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    return Tokenizer(inner, end, settings)


def decoder(**fields):
    torch.manual_seed(0)
    model = Decoder(ModelConfig(**({"depth": 2, "width": 32, "heads": 4} | fields)), VOCAB)
    with torch.no_grad():
        for parameter in model.parameters():  # as different from each other as trained ones are
            parameter.mul_(3).add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tied": False},
        {"kv_heads": 2},
        {"kv_heads": 1, "tied": False, "hidden": 56},
        {"rope_theta": 123.0, "norm_eps": 0.01},
        {"width": 48, "heads": 2, "depth": 1},
    ],
    ids=str,
)
def test_transformers_gives_equal_logits(fields, tokenizer, tmp_path):
    model = decoder(**fields)
    export(model, tokenizer, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = torch.randint(VOCAB, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mine, loaded = model(tokens), theirs(tokens).logits
    assert mine.std() > 0.1
    assert float((mine - loaded).abs().max()) <= 1e-5 * max(1.0, float(mine.abs().max()))
    trained = sum(parameter.numel() for parameter in model.parameters())
    assert theirs.num_parameters() == trained


def test_an_exported_folder_comes_back_as_a_model_and_a_tokenizer(tokenizer, tmp_path):
    model = decoder(kv_heads=2)
    export(model, tokenizer, tmp_path / "out")
    back = load(str(tmp_path / "out")).eval()
    tokens = torch.randint(VOCAB, (2, 24), generator=torch.Generator().manual_seed(0))
    segments = (torch.arange(24) // 10).expand(2, 24)
    torch.testing.assert_close(
        back(tokens, segments), model(tokens, segments), rtol=1e-4, atol=1e-5
    )
    ours = load_tokenizer(str(tmp_path / "out"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "the lazy fox, 狐"
    assert ours.encode(text) == theirs(text).input_ids == tokenizer.encode(text)
    assert theirs.eos_token_id == ours.end_of_text == tokenizer.end_of_text
    assert theirs.decode(theirs(text).input_ids) == text


def test_transformers_generates_from_the_folder(tokenizer, tmp_path):
    from shoal.models.generate import choose_tokens

    model = decoder()
    export(model, tokenizer, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    prompt = tokenizer.encode("the quick")
    tokens = torch.tensor([prompt])
    written = theirs.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=10, do_sample=False,
        pad_token_id=0,
    )  # fmt: skip
    mine = list(choose_tokens(model, prompt, 10, 0.0, 0, 0))
    got = written[0, len(prompt) :].tolist()
    assert got == mine[: len(got)]


def test_a_hugging_face_model_is_exported_as_what_it_is(tokenizer, tmp_path):
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2, n_positions=32
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "in")
    model = load(str(tmp_path / "in")).eval()
    with torch.no_grad():
        model.inner.transformer.wte.weight.add_(1.0)  # fine-tuned
    export(model, tokenizer, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(theirs).__name__ == "GPT2LMHeadModel"
    tokens = torch.arange(20)[None]
    assert torch.equal(theirs(tokens).logits, model(tokens))
    assert load_tokenizer(str(tmp_path / "out")).encode("fox") == tokenizer.encode("fox")


def test_a_folder_with_something_in_it_is_left_alone(tokenizer, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(ShoalError, match=f"{tmp_path / 'out'} exists already"):
        export(decoder(), tokenizer, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["thesis.txt"]


def test_an_empty_folder_is_filled(tokenizer, tmp_path):
    (tmp_path / "out").mkdir()
    export(decoder(), tokenizer, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
    modes = {file.stat().st_mode for file in (tmp_path / "out").iterdir()}
    assert len(modes) == 1, "every file can be read by whoever can read the others"


def test_a_failed_export_leaves_nothing_behind(tokenizer, tmp_path, monkeypatch):
    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shoal.models.export.save_file", full_disk)
    with pytest.raises(ShoalError, match=r"cannot write .*out: .*No space left"):
        export(decoder(), tokenizer, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_model_without_a_format_is_refused(tokenizer, tmp_path):
    with pytest.raises(ShoalError, match="a Linear has no Hugging Face format"):
        export(torch.nn.Linear(2, 2), tokenizer, tmp_path / "out")
    assert os.listdir(tmp_path) == []
