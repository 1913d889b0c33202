"""One self-contained HTML page: no script, no external resource; readable on a phone, in light and in dark."""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #5b6470; --line: #d9dde3; --paper: #f6f7f9; --card: #ffffff;
  --good: #1a7f4b; --bad: #b3261e; --note: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa4b0; --line: #343a42; --paper: #15181c;
  --card: #1e2228; --good: #58c98f; --bad: #ff8a80; --note: #e2b35c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
p, ul { margin: .4rem 0; max-width: 46rem; }
ul { padding-left: 1.2rem; }
.soft { color: var(--soft); }
.note { border-left: 4px solid var(--note); padding: .5rem .8rem; background: var(--card); max-width: none; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .7rem; margin: 1rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .6rem .8rem; }
.card b { display: block; font-size: 1.4rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .85rem; }
.good b { color: var(--good); } .bad b { color: var(--bad); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: .8rem; }
figure { margin: 0; background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: .5rem; }
figure img { display: block; width: 100%; height: auto; }
figcaption { color: #5b6470; font-size: .85rem; padding: .2rem .4rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: right; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 13rem; }
thead th { color: var(--soft); font-weight: 500; }
code { font-size: .92em; overflow-wrap: anywhere; }
details summary { cursor: pointer; color: var(--soft); margin: .6rem 0; }
"""


@dataclass(frozen=True)
class Card:
    """One figure that is read first. `verdict` is "good", "bad" or "" (no judgement)."""

    figure: str
    what: str
    verdict: str = ""


def page(title: str, parts: Iterable[str]) -> str:
    """Return the whole document of these parts, which are HTML already."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
    )
    body = "\n".join(part for part in parts if part)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'


def heading(text: str, *, first: bool = False) -> str:
    """Return a heading; the first one is the page's."""
    level = 1 if first else 2
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text; `kind` "soft" is quieter, "note" is set apart. Nothing where it is empty."""
    return f'<p class="{kind}">{escape(text)}</p>' if text else ""


def bullets(texts: Sequence[str]) -> str:
    """Return a list of plain texts; `backticks` in them become code."""
    return "<ul>" + "".join(f"<li>{_with_code(text)}</li>" for text in texts) + "</ul>" if texts else ""


def cards(found: Sequence[Card]) -> str:
    """Return figures side by side."""
    inner = "".join(
        f'<div class="card {card.verdict}"><b>{escape(card.figure)}</b><span>{escape(card.what)}</span></div>'
        for card in found
    )
    return f'<div class="cards">{inner}</div>'


def charts(figures: Sequence[str]) -> str:
    """Return figures (`picture`) side by side where there is room."""
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def picture(data: bytes, media_type: str, text: str) -> str:
    """Return an image that the page carries in itself; `text` is its caption and what a screen reader says."""
    source = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    caption = f"<figcaption>{escape(text)}</figcaption>"
    return f'<figure><img alt="{escape(text, quote=True)}" src="{source}">{caption}</figure>'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table that scrolls by itself where the screen is narrow; the first column is what the row is."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def details(summary: str, inner: str) -> str:
    """Return a part that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>"


def _with_code(text: str) -> str:
    pieces = text.split("`")
    return "".join(f"<code>{escape(piece)}</code>" if k % 2 else escape(piece) for k, piece in enumerate(pieces))
