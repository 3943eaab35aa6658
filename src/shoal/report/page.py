"""One HTML file that needs nothing else: a sentence, a table, plots, and the configuration."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shoal.errors import ShoalError
from shoal.report.look import Plot
from shoal.report.plots import require_plotly
from shoal.report.table import Table

STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --dim: #595959; --back: #fff; --line: #d6d6d6; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8e8; --dim: #a8a8a8; --back: #16181c; --line: #3a3d44; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--back);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.1rem; margin: 1.5rem 0 0; }
h3 { font-size: 1rem; margin: .75rem 0 0; }
p { margin: .25rem 0 .75rem; }
.result { font-size: 1.1rem; }
.dim { color: var(--dim); font-size: .9rem; }
.plots { display: grid; grid-template-columns: minmax(0, 1fr); column-gap: 2rem; }
@media (min-width: 60rem) { .plots { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
section { min-width: 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: bottom; }
thead th { font-size: .85rem; color: var(--dim); font-weight: 600; overflow-wrap: normal; }
th[scope=row], thead th:first-child { text-align: left; }
th[scope=row] { min-width: 12.5rem; }
td { white-space: nowrap; }
@media (max-width: 75rem) {
  thead { display: none; }
  tr { display: block; border: 1px solid var(--line); border-radius: .4rem; margin: .6rem 0;
    padding: .3rem .6rem; }
  tr > th { display: block; border: 0; padding: .2rem 0; }
  td { display: flex; justify-content: space-between; gap: 1rem; border: 0; padding: .1rem 0; }
  td::before { content: attr(data-title); color: var(--dim); text-align: left;
    white-space: normal; }
}
pre { white-space: pre-wrap; font-size: .85rem; background: color-mix(in srgb, var(--text) 6%,
  var(--back)); padding: .75rem; border-radius: .4rem; }
summary { cursor: pointer; margin: .5rem 0; }
"""

SCRIPT = """
const dark = matchMedia("(prefers-color-scheme: dark)");
const drawn = [...document.querySelectorAll(".plot")].map(place => {
  const figure = JSON.parse(place.querySelector("script").textContent);
  place.replaceChildren();
  // A finger that scrolls the page must not zoom a plot.
  figure.layout.dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
  Plotly.newPlot(place, figure.data, figure.layout, {responsive: true, displayModeBar: false});
  return place;
});
function paint() {
  const style = getComputedStyle(document.documentElement);
  const text = style.getPropertyValue("--text"), line = style.getPropertyValue("--line");
  for (const place of drawn) Plotly.relayout(place, {"font.color": text,
    "xaxis.gridcolor": line, "yaxis.gridcolor": line, "xaxis.linecolor": line});
}
paint();
dark.addEventListener("change", paint);
"""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page says, as plain text: `write` escapes all of it."""

    title: str
    result: str
    """The sentence that says what came out."""
    table: Table
    notes: Sequence[str]
    """Sentences under the table: how its numbers were taken."""
    workers: Table | None = None
    """Of the workers, where they are not in step."""
    plots: Sequence[Plot]
    settings: Sequence[tuple[str, str]]
    """Blocks of configuration: a heading and a text."""
    made_with: Sequence[str] = field(default=())


def write_page(page: Page, path: Path) -> None:
    """Write the page as one file. Raises ShoalError where plotly is missing or the disk refuses."""
    require_plotly()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_document(page), encoding="utf-8")
    except OSError as error:
        raise ShoalError(f"cannot write the page {path}: {error.strerror}") from None


def _document(page: Page) -> str:
    from plotly.offline import get_plotlyjs

    notes = " ".join(page.notes)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(page.title)}</title>",
            f"<style>{STYLE}</style>",
            "</head><body>",
            f"<h1>{html.escape(page.title)}</h1>",
            f'<p class="result">{html.escape(page.result)}</p>',
            page.table.html(),
            f'<p class="dim">{html.escape(notes)}</p>',
            *([f"<h2>The workers</h2>\n{page.workers.html()}"] if page.workers else []),
            '<div class="plots">',
            *(_section(plot) for plot in page.plots),
            "</div>",
            "<h2>The configuration</h2>",
            *(_settings(title, text) for title, text in page.settings),
            f'<p class="dim">{html.escape(" ".join(page.made_with))}</p>',
            f"<script>{get_plotlyjs()}</script>",
            f"<script>{SCRIPT}</script>",
            "</body></html>",
        ]
    )


def _section(plot: Plot) -> str:
    parts = [f"<section><h2>{html.escape(plot.title)}</h2>",
             f'<p class="dim">{html.escape(plot.says)}</p>']  # fmt: skip
    for name, figure in plot.figures:
        if name:
            parts.append(f"<h3>{html.escape(name)}</h3>")
        # In a script element only `<` could end it.
        content = figure.to_json().replace("<", "\\u003c")
        height = figure.layout.height
        parts.append(
            f'<div class="plot" style="min-height:{height}px">'
            f'<script type="application/json">{content}</script></div>'
        )
    return "\n".join([*parts, "</section>"])


def _settings(title: str, text: str) -> str:
    return (
        f"<details><summary>{html.escape(title)}</summary><pre>{html.escape(text)}</pre></details>"
    )
