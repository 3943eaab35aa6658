"""Tiny texts with their summaries: the summary is the name that the text is about."""

from __future__ import annotations

from pathlib import Path

from recipe_translation import TINY, numbers, write_rows


def prepare(folder: Path) -> list[str]:
    """A table in `folder`, ragged, with gaps and with texts to cut; a tiny run's settings."""
    rows: list[dict[str, object]] = [
        {
            "body": f"This is about {text}. {'It says no more. ' * (i % 4)}",
            "line": text,
            "at": i // 3,
        }
        for i, (text, _) in enumerate(numbers(90))
    ]
    rows.append({"body": "Nothing sums this up.", "line": "", "at": "none"})
    path = write_rows(folder, rows)
    fields = ("data.text_field=body", "data.target_field=line", "data.group_field=at")
    return ["recipe=summarization", *TINY, *fields, f"data.source={path}"]
