"""A tiny causal model in a folder, with its tokenizer, and a text that it has not seen."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import transformers

from shoal.data.tokenizer import train_tokenizer

WORDS = ("sea", "wind", "fish", "shoal", "turn", "light", "deep", "silver", "move", "as", "one")
SETTINGS = [
    *("recipe=finetune", "data.sequence_length=16", "batch.global_batch=12"),
    *("batch.micro_batch=2", "budget.steps=4", "evaluation.samples=8", "evaluation.every=0"),
    "checkpoint.save_every=0",
]


def text(seed: int, documents: int = 30) -> str:
    """Documents of 1 to 60 words."""
    chance = random.Random(seed)
    return ".\n\n".join(" ".join(chance.choices(WORDS, k=chance.randint(1, 60)))
                        for _ in range(documents))  # fmt: skip


def write_model(folder: Path) -> Path:
    """A Llama of 20,000 weights that has learnt nothing yet, as Hugging Face keeps one."""
    # Kept from one test to the next, as its name says which texts it was learnt from.
    train_tokenizer(lambda: [text(0)], corpus="finetune", vocab_size=300).save(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def prepare(folder: Path) -> list[str]:
    """A model and a text in `folder`, and a tiny run's settings."""
    (folder / "notes.txt").write_text(text(1))
    model = write_model(folder / "model")
    return [*SETTINGS, f"data.source={folder / 'notes.txt'}", f"model.path={model}"]
