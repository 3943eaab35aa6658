"""What a summary was written from: the words of the text that it owes most to."""

from __future__ import annotations

from translation import draw_owed

LENGTH = 28
"""Source tokens of the text that is drawn."""


def draw(run, figure) -> None:
    """A held-out text and its summary, drawn as a translation is."""
    task, data = run.task, run.task.data
    index = min(task.judged, key=lambda i: abs(len(data.held_out[i]["source"]) - LENGTH))
    draw_owed(run, figure, index)
