"""One self-contained HTML page: tables that sort, pictures as data: URIs, light and dark, nothing fetched from anywhere.

The page's own policy forbids every other source, so that a browser shows the same offline, in ten years, and from a mail.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from reproduction.record import write_whole

CHART_WIDTH, PHOTO_WIDTH = 1800, 1400  # pixels at most
CHART_COLOURS, PHOTO_QUALITY = 128, 82
DASHES, MARKS = ("-", "\u2013", "\u2212"), ("", "\u2713")


@dataclass(frozen=True)
class Table:
    """A table of words. `marked` rows (positions) stand out; `note` is the line below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    marked: Sequence[int] = ()


@dataclass(frozen=True)
class Picture:
    """An image file with its caption; a `photo` is embedded as JPEG, a chart as PNG of few colours."""

    path: Path
    caption: str
    photo: bool = False


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, tables and pictures below it; a `folded` one opens at a click."""

    title: str
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    folded: bool = False


STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #5c6670; --back: #ffffff; --panel: #f5f7f9; --line: #d9dee3; --mark: #e8f1fb; --link: #0b5cad;
  --warn-ink: #6b4300; --warn-back: #fff3d6; --warn-line: #e0a526; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #a0aab4; --back: #14181c; --panel: #1c2228; --line: #353d45; --mark: #1b3149;
  --link: #7ab8f5; --warn-ink: #ffdf9a; --warn-back: #3a2d0c; --warn-line: #a87a1b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 90rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .5rem 0 1rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .6rem; padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p { margin: .4rem 0; max-width: 60rem; }
a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: 1rem 0; font-size: .92rem; }
.warning { color: var(--warn-ink); background: var(--warn-back); border: 1px solid var(--warn-line);
  border-radius: 6px; padding: .4rem .9rem; max-width: 60rem; }
.note { color: var(--soft); font-size: .88rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; overflow-wrap: normal; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .65rem; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line); background: var(--back); }
thead th { background: var(--panel); vertical-align: bottom; }
tbody tr:last-child > * { border-bottom: 0; }
tr > :first-child { position: sticky; left: 0; z-index: 1; border-right: 1px solid var(--line); max-width: 45vw; overflow: hidden; text-overflow: ellipsis; }
tbody th { font-weight: 600; }
tr.marked > * { background: var(--mark); }
.number { text-align: right; }
.mark { text-align: center; }
code { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .95em; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible, summary:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
figure { margin: 1.2rem 0; }
img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 6px; }
figcaption { color: var(--soft); font-size: .88rem; margin-top: .35rem; }
details { border: 1px solid var(--line); border-radius: 6px; padding: 0 .9rem; margin: .7rem 0; }
details > summary { cursor: pointer; font-weight: 600; padding: .6rem 0; }
@media (max-width: 40rem) { body { font-size: 15px; } h1 { font-size: 1.35rem; } th, td { padding: .32rem .45rem; } table { font-size: .82rem; } }
"""

# A click on a column's name sorts by it, a second one the other way; numbers as numbers, what has none last.
SCRIPT = """
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const th = button.parentElement, table = th.closest("table"), body = table.tBodies[0], column = th.cellIndex;
  const down = th.getAttribute("aria-sort") === (button.dataset.number ? "descending" : "ascending") ? !button.dataset.number : !!button.dataset.number;
  const text = row => row.cells[column].textContent.trim();
  const value = row => parseFloat(text(row).replace("\\u2212", "-").replace(/,/g, ""));
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (!button.dataset.number) return (down ? -1 : 1) * text(a).localeCompare(text(b));
    return isNaN(x) - isNaN(y) || (isNaN(x) ? 0 : down ? y - x : x - y);
  });
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", down ? "descending" : "ascending");
  body.append(...rows);
});
"""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_CODE = re.compile(r"`([^`]+)`")
_NUMBER = re.compile(r"^\s*[+\-\u2212]?\d[\d,]*\.?\d*\b")


def write_page(path: Path, title: str, notes: Sequence[str], sections: Sequence[Section], warnings: Sequence[str] = ()) -> Path:
    """Write the page, UTF-8, and return its path. `warnings` stand in a box of their own right below the title.

    All words are escaped: class names and paths may hold anything; what stands between `backticks` is set as code.
    Raises OSError where a picture cannot be read.
    """
    names = [f"s{number}" for number in range(len(sections))]
    links = "".join(f'<a href="#{name}">{escape(section.title)}</a>' for name, section in zip(names, sections, strict=True))
    body = "".join(_section(name, section) for name, section in zip(names, sections, strict=True))
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{STYLE}</style></head>
<body><main><h1>{escape(title)}</h1>
{f'<div class="warning" role="note">{_paragraphs(warnings)}</div>' if warnings else ""}
{_paragraphs(notes)}
<nav aria-label="Sections">{links}</nav>
{body}
</main><script>{SCRIPT}</script></body></html>
"""
    write_whole(path, page.encode(errors="replace"))  # a path may hold bytes that are no text
    return path


def _section(name: str, section: Section) -> str:
    content = _paragraphs(section.notes) + "".join(map(_table, section.tables)) + "".join(map(_picture, section.pictures))
    if section.folded:
        return f'<details id="{name}"><summary>{escape(section.title)}</summary>{content}</details>\n'
    return f'<section id="{name}"><h2>{escape(section.title)}</h2>{content}</section>\n'


def _paragraphs(notes: Sequence[str]) -> str:
    return "".join(f"<p>{_words(note)}</p>" for note in notes)


def _words(text: str) -> str:
    """Escaped, with `code` set as code."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def _table(table: Table) -> str:
    """A table whose first column names the row; columns that hold mostly numbers are flushed right and sort as numbers, marks are centred."""
    columns = [[row[column].strip() for row in table.rows] for column in range(len(table.columns))]
    numeric = [_is_numeric(cells) for cells in columns]
    marks = [all(cell in MARKS for cell in cells) for cells in columns]
    kinds = [' class="number"' if number else ' class="mark"' if mark else "" for number, mark in zip(numeric, marks, strict=True)]
    head = "".join(
        f'<th scope="col"{kind}><button type="button"{" data-number=1" if number else ""}>{escape(word)}</button></th>'
        for word, kind, number in zip(table.columns, kinds, numeric, strict=True)
    )
    lines = []
    for position, row in enumerate(table.rows):
        first, *others = (escape(cell) for cell in row)
        cells = "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(others, kinds[1:], strict=True))
        mark = ' class="marked"' if position in table.marked else ""
        lines.append(f'<tr{mark}><th scope="row" title="{first}">{first}</th>{cells}</tr>\n')
    note = f'<p class="note">{_words(table.note)}</p>' if table.note else ""
    label = escape(table.title)
    return (
        f'<h3>{_words(table.title)}</h3><div class="scroll" tabindex="0" role="region" aria-label="{label}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>\n{''.join(lines)}</tbody></table></div>{note}\n"
    )


def _is_numeric(cells: Sequence[str]) -> bool:
    """Most of what is there are numbers, or dashes stand for all of them."""
    filled = [cell for cell in cells if cell and cell not in DASHES]
    if not filled:
        return any(cells)
    return 2 * sum(bool(_NUMBER.match(cell)) for cell in filled) > len(filled)


def _picture(picture: Picture) -> str:
    uri, width, height = data_uri(picture.path, picture.photo)
    sizes = f'alt="{escape(picture.caption)}" width="{width}" height="{height}"'
    return f'<figure><img src="{uri}" {sizes}><figcaption>{_words(picture.caption)}</figcaption></figure>\n'


def data_uri(path: Path, photo: bool) -> tuple[str, int, int]:
    """An image file as a data: URI of modest size, with its width and height in pixels."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    limit = PHOTO_WIDTH if photo else CHART_WIDTH
    if image.width > limit:
        image = image.resize((limit, max(1, round(image.height * limit / image.width))), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if photo:
        image.save(buffer, "JPEG", quality=PHOTO_QUALITY, optimize=True)
    else:
        image.quantize(CHART_COLOURS, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return f"data:image/{'jpeg' if photo else 'png'};base64,{base64.b64encode(buffer.getvalue()).decode()}", image.width, image.height
