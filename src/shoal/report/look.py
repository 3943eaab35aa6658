"""How all plots look: colours, patterns and a layout that fits a phone.

Series differ in colour, in dash and in marker; a bar's parts differ in colour and in pattern.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1")
"""Okabe and Ito's, which people with any colour vision can tell apart, on white and on black."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "x", "cross", "star", "triangle-down")
PATTERNS = ("", "/", "x", ".", "\\", "+", "-", "|")


@dataclass(frozen=True)
class Plot:
    """A heading, a sentence under it, and figures of plotly."""

    title: str
    says: str
    figures: list[tuple[str, Any]]
    """Each with its own small heading, which may be empty."""


def layout(height: int) -> dict[str, Any]:
    """What all plots share. Colours of text and grid are the page's: see page.py."""
    return {
        "template": None,
        "height": height,
        "font": {"size": 13},
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": {"automargin": True, "zeroline": False},
        "yaxis": {"automargin": True, "zeroline": False},
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal"},
        "hovermode": "closest",
    }
