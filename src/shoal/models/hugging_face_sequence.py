"""Pretrained encoder-decoder models of Hugging Face (T5, BART, Marian), from safetensors only."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.errors import ShoalError
from shoal.models.hugging_face import load_transformers, locate, unreadable
from shoal.models.sequence import NONE, SequenceModel


class HuggingFaceSequenceModel(SequenceModel):
    """A transformers model behind the interface of the built-in one."""

    def __init__(self, inner: Any, start: int, padding: int) -> None:
        """Wrap `inner`; its targets begin after `start`, and `padding` fills up its rows."""
        super().__init__()
        self.inner = inner
        self.start, self.padding = start, padding
        self.vocab_size = int(inner.config.vocab_size)

    def forward(self, source_BS: Tensor, targets_BT: Tensor) -> Tensor:
        """The sum of -log p over the targets; see `SequenceModel.forward`."""
        tokens_BS, mask_BS = self._padded(source_BS)
        logits_BTV = self.inner(
            input_ids=tokens_BS,
            attention_mask=mask_BS,
            decoder_input_ids=self._begun(targets_BT.clamp(min=0)[:, :-1]),
            use_cache=False,
        ).logits
        return F.cross_entropy(
            logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), reduction="sum"
        )

    def read(self, source_BS: Tensor) -> tuple[Tensor, ...]:
        """The encoder's states [B, S, C], and the mask of the source."""
        tokens_BS, mask_BS = self._padded(source_BS)
        encoder = self.inner.get_encoder()
        return encoder(input_ids=tokens_BS, attention_mask=mask_BS).last_hidden_state, mask_BS

    def next(self, memory: tuple[Tensor, ...], written_BT: Tensor) -> Tensor:
        """log p [B, V] of the token after those written."""
        logits_BTV = self.inner(
            encoder_outputs=(memory[0],),
            attention_mask=memory[1],
            decoder_input_ids=self._begun(written_BT),
            use_cache=False,
        ).logits
        return logits_BTV[:, -1].float().log_softmax(-1)

    def _padded(self, source_BS: Tensor) -> tuple[Tensor, Tensor]:
        there_BS = source_BS != NONE
        return torch.where(there_BS, source_BS, self.padding), there_BS.to(torch.int64)

    def _begun(self, written_BT: Tensor) -> Tensor:
        start_B1 = written_BT.new_full((len(written_BT), 1), self.start)
        return torch.cat((start_B1, written_BT), dim=1)


def load_sequence_model(path: str) -> HuggingFaceSequenceModel:
    """The encoder-decoder model in a folder or under a hub name; fp32, on the CPU.

    Raises ShoalError where there is none that can be read safely; the message names the path.
    """
    place = locate(path)
    if "gguf_file" in place.options:
        raise ShoalError(f"{path} holds a GGUF model; this recipe reads safetensors only")
    try:
        inner = load_transformers().AutoModelForSeq2SeqLM.from_pretrained(
            place.name, dtype=torch.float32, use_safetensors=True, **place.options
        )
    except Exception as error:  # the library raises OSError, ValueError, KeyError, ImportError ...
        raise unreadable("encoder-decoder model", path, place, error) from error
    start = inner.config.decoder_start_token_id
    padding = inner.config.pad_token_id
    if start is None or padding is None:
        raise ShoalError(
            f"the config.json in {path} must set decoder_start_token_id and pad_token_id"
        )
    return HuggingFaceSequenceModel(inner, int(start), int(padding))
