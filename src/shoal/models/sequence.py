"""Models that write one text for another: what each offers, and the search for what to write.

Shapes in names: B rows, S source tokens, T target tokens, V vocabulary, K candidates of a row.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

NONE = -1
"""Stands in a row of a source where it has no more tokens."""


class SequenceModel(nn.Module):
    """A module that gives the probability of a target, given its source."""

    vocab_size: int
    """Tokens that it knows."""

    @abstractmethod
    def forward(self, source_BS: Tensor, targets_BT: Tensor) -> Tensor:
        """The loss, in nats: 0-d, the sum of -log p(target) over the targets.

        Args:
            source_BS: token ids, int64; NONE after the end of a row.
            targets_BT: token ids, int64; IGNORE (-100) after the end of a row.
        """

    @abstractmethod
    def read(self, source_BS: Tensor) -> tuple[Tensor, ...]:
        """What writing needs to know of the sources; B is the first axis of each part."""

    @abstractmethod
    def next(self, memory: tuple[Tensor, ...], written_BT: Tensor) -> Tensor:
        """log p [B, V] of the token after those written; T can be 0."""


@torch.no_grad()
def beam_search(
    model: SequenceModel, source_BS: Tensor, *, end: int, longest: int, width: int = 4
) -> list[list[int]]:
    """The most probable target of each source that a beam of `width` finds; 1 is greedy.

    Candidates are compared by log p / length (Wu et al. 2016, "Google's Neural Machine
    Translation System", with alpha = 1): without the division short ones would win. A row is
    done when `width` of its candidates have ended.

    Args:
        model: in evaluation mode.
        source_BS: as `SequenceModel.forward` has it.
        end: the token that ends a target.
        longest: the most tokens of a target.
        width: candidates of a row that go on.

    Returns:
        tokens without the end, a list for each row.
    """
    rows, device = len(source_BS), source_BS.device
    memory = tuple(part.repeat_interleave(width, dim=0) for part in model.read(source_BS))
    written = torch.zeros(rows * width, 0, dtype=torch.int64, device=device)
    # At first all candidates of a row are the same: only the first one may go on.
    scores_BK = torch.full((rows, width), -torch.inf, device=device)
    scores_BK[:, 0] = 0
    ended: list[list[tuple[float, list[int]]]] = [[] for _ in range(rows)]
    for length in range(1, longest + 1):
        log_p_BKV = model.next(memory, written).float().view(rows, width, -1)
        vocab = log_p_BKV.shape[-1]
        # Of 2 K continuations at most K are ends, so K others are left.
        best, chosen = (scores_BK[..., None] + log_p_BKV).flatten(1).topk(2 * width)
        tokens, origins = chosen % vocab, chosen // vocab
        is_end = tokens == end
        texts = written.view(rows, width, -1)
        for row, place in is_end[:, :width].nonzero().tolist():
            score = float(best[row, place]) / length
            if score > -torch.inf:
                ended[row].append((score, texts[row, origins[row, place]].tolist()))
        kept = is_end.to(torch.int8).argsort(dim=1, stable=True)[:, :width]
        scores_BK, tokens = best.gather(1, kept), tokens.gather(1, kept)
        base = torch.arange(rows, device=device)[:, None] * width
        origin = (base + origins.gather(1, kept)).flatten()
        written = torch.cat((written[origin], tokens.view(-1, 1)), dim=1)
        if all(len(found) >= width for found in ended):
            break
    for row, found in enumerate(ended):
        if not found:  # none came to an end
            found.append((0.0, written.view(rows, width, -1)[row, 0].tolist()))
    return [max(found)[1] for found in ended]


def batches_by_length(lengths: list[int], size: int) -> Iterator[list[int]]:
    """Numbers of rows in batches of alike lengths, so that little is padded."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), size):
        yield order[start : start + size]
