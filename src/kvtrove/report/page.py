"""A page that needs nothing else, no network and no script; light or dark as the system is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { --ink: #1d2327; --soft: #5b6770; --rule: #dde2e6; --paper: #ffffff; --card: #f6f8f9;
  --s1: #0b6bcb; --s2: #c2660a; --bad: #c62a2a; --good: #1a7f4b; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaed; --soft: #9aa6af; --rule: #353d44; --paper: #14181b;
  --card: #1c2226; --s1: #62aef5; --s2: #f0a04b; --bad: #ff7b72; --good: #5fcf95; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 1200px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .8rem; }
p { margin: .3rem 0; color: var(--soft); } p.note::before { content: "Note: "; font-weight: 600; }
.tiles, .charts, .maps { display: grid; gap: 1rem; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(min(45%, 190px), 1fr)); margin: 1rem 0; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); }
.maps { grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); }
.single { max-width: 780px; }
.tile, figure { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; margin: 0; min-width: 0;
  padding: .8rem 1rem; }
.scroll, figure { overflow-x: auto; } .chart { min-width: 480px; }
.tile b { display: block; font-size: 1.45rem; font-weight: 600; } .tile span { color: var(--soft); font-size: .85rem; }
figcaption { font-weight: 600; display: flex; justify-content: space-between; flex-wrap: wrap; }
.legend { font-weight: 400; font-size: .85rem; color: var(--soft); } .key { margin-left: .9rem; white-space: nowrap; }
.key::before { content: ""; display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .35em;
  background: currentColor; }
.key.s1::before { background: var(--s1); } .key.s2::before { background: var(--s2); }
.key.bad { color: inherit; } .key.bad::before { background: var(--bad); }
svg { width: 100%; height: auto; display: block; margin-top: .4rem; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); } svg text.marked, svg text.cell { fill: var(--ink); }
svg text.marked { paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
svg text.cell.strong { fill: var(--paper); } .cell-box { fill: var(--s1); } .front { stroke-dasharray: 2 4; }
.grid { stroke: var(--rule); } .axis { stroke: var(--soft); } .mark { stroke: var(--ink); stroke-dasharray: 4 3; }
.line { fill: none; stroke-width: 2; } .line.s1 { stroke: var(--s1); } .line.s2 { stroke: var(--s2); }
.line.bad { stroke: var(--bad); }
.dot { fill-opacity: .75; } .dot.s1, .bar.s1 { fill: var(--s1); } .dot.s2 { fill: var(--s2); }
.dot.bad { fill: var(--bad); }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; border-bottom: 1px solid var(--rule); vertical-align: top;
  white-space: nowrap; }
th:first-child, td:first-child, .words th, .words td { text-align: left; } th { color: var(--soft); font-weight: 500; }
.words td { white-space: normal; }
.good { color: var(--good); } .bad { color: var(--bad); }
pre { overflow: auto; background: var(--card); padding: 1rem; border-radius: 8px; } summary { cursor: pointer; }
"""


def document(title: str, body: Iterable[str]) -> str:
    """The whole page. body: finished HTML; title: text."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def charts(drawn: Iterable[str], style: str = "charts") -> str:
    """Figures side by side where there is room. style: "charts", or "maps" for smaller ones."""
    return f'<div class="{style}">{"".join(drawn)}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], style: str = "figures") -> str:
    """Cells are text and become escaped. style: "figures" stand right, "words" left."""
    top = "".join(f"<th>{escape(title)}</th>" for title in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{style}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )
