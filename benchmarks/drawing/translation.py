"""What a text was written from: how much each word owes to each word of the source."""

from __future__ import annotations

import torch

from shoal.models.sequence import NONE

LENGTH = 14
"""Source tokens of the pair that is drawn: enough to see an order, few enough to read."""


def draw(run, figure) -> None:
    """A held-out pair as a table: rows are written tokens, columns tokens of the source."""
    task, data = run.task, run.task.data
    index = min(task.judged, key=lambda i: abs(len(data.held_out[i]["source"]) - LENGTH))
    draw_owed(run, figure, index)


def draw_owed(run, figure, index: int) -> None:
    """The fall of log p of each written token where a token of the source is hidden."""
    task, data = run.task, run.task.data
    source, true = data.held_out.text(index)
    [written] = task.write(run.model, [source])
    tokens = data.held_out[index]["source"]
    target = torch.tensor(task.tokenizer.encode(" ".join(written.split())))
    owed = _owed(run.model, tokens, target)
    axes = figure.subplots()
    axes.imshow(owed.clamp(0, 5), aspect="auto", cmap="Greens", vmin=0, vmax=5)
    names = [task.tokenizer.decode([token]).strip() or "·" for token in tokens.tolist()[:-1]]
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    names = [task.tokenizer.decode([token]).strip() or "·" for token in target.tolist()]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("token of the source that is hidden")
    axes.set_ylabel("token written")
    axes.set_title(f"written: {written}\ntruth: {true}", loc="left", fontsize=9)
    bar = figure.colorbar(axes.images[0], ax=axes, fraction=0.03)
    bar.set_label("log p lost, nats")


@torch.no_grad()
def _owed(model, tokens, target):
    """[T, S - 1]: the end of the source is never hidden."""
    length = len(tokens)
    rows = [tokens, *(torch.cat((tokens[:i], tokens[i + 1 :])) for i in range(length - 1))]
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=NONE)
    memory = model.read(batch)
    losses = []
    for place, token in enumerate(target.tolist()):
        log_p = model.next(memory, target[:place].expand(length, -1))[:, token]
        losses.append(log_p[0] - log_p[1:])
    return torch.stack(losses)
