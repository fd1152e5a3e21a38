"""A page of text, tables and pictures in one HTML file that asks nothing from outside itself."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from .._version import __version__
from ..files import write_atomically

SMALLEST = 96
"""CSS pixels: a picture of fewer is enlarged by a whole factor, so that 8x8 digits can be seen."""

# The browser itself then refuses every request, also those of a later edit of this file.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfc; --ink: #1c1f23; --quiet: #5d646d; --line: #dcdfe3;
  --soft: #f3f4f4; --accent: #0a5c96; --mark: #e9f2f9; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15181b; --ink: #e4e6e8; --quiet: #9aa3ad; --line: #343a41; --soft: #1e2226;
    --accent: #7cc0f2; --mark: #1b3244; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 3rem 1.25rem 4rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: clamp(1.7rem, 1.2rem + 2.2vw, 2.5rem); line-height: 1.15; letter-spacing: -.02em;
  text-wrap: balance; overflow-wrap: anywhere; }
h2 { margin: 0 0 .6rem; padding-top: 1.5rem; border-top: 1px solid var(--line); font-size: 1.35rem; line-height: 1.3;
  overflow-wrap: anywhere; }
section { margin-top: 2.75rem; }
p { margin: 0 0 1rem; max-width: 42rem; overflow-wrap: anywhere; }
a { color: var(--accent); text-underline-offset: .2em; }
.subtitle { margin: .6rem 0 0; max-width: none; text-wrap: balance; color: var(--quiet); font-size: 1.1rem; }
nav { margin: 1.75rem 0 2rem; font-size: .95rem; }
nav ol { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; margin: 0; padding: 0; list-style: none; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(12rem, 45%), 1fr)); gap: 1.25rem 2rem;
  margin: 1.5rem 0 2rem; }
.facts div { display: flex; flex-direction: column-reverse; justify-content: flex-end; }
.facts dt { color: var(--quiet); font-size: .9rem; line-height: 1.35; }
.facts dd { margin: 0; font-size: 1.9rem; font-weight: 600; line-height: 1.2; letter-spacing: -.01em;
  font-variant-numeric: tabular-nums; }
figure { margin: 1.25rem 0 1.75rem; }
.card { display: inline-block; max-width: 100%; padding: .75rem; background: #fff; border: 1px solid var(--line);
  border-radius: .4rem; vertical-align: top; }
.card img { display: block; max-width: 100%; height: auto; }
img.pixels { image-rendering: pixelated; }
figcaption { margin-top: .5rem; max-width: 42rem; color: var(--quiet); font-size: .9rem; line-height: 1.45; }
.row { display: flex; flex-wrap: wrap; gap: 1.25rem; align-items: flex-start; margin: 1.25rem 0 1.75rem; }
.row figure { flex: 1 1 24rem; margin: 0; min-width: min(100%, 9rem); max-width: max-content; }
.row figcaption { width: 0; min-width: 100%; }
.scroll { overflow-x: auto; margin: 1.25rem 0 .5rem; }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .95rem; line-height: 1.4; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem 1.1rem .45rem .6rem; text-align: left; vertical-align: baseline;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--quiet); font-weight: 600; font-size: .88rem; vertical-align: bottom; }
tbody th { min-width: 8rem; font-weight: 500; }
.number { text-align: right; white-space: nowrap; }
.highlight > * { background: var(--mark); font-weight: 600; }
.note { color: var(--quiet); font-size: .9rem; line-height: 1.45; }
pre { width: max-content; min-width: 100%; margin: 0; padding: 1rem .9rem; background: var(--soft);
  border-radius: .4rem; font: .7rem/1.25 "DejaVu Sans Mono", ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
footer { margin-top: 3.5rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--quiet);
  font-size: .85rem; }
@media print {
  :root { --paper: #fff; --ink: #000; --quiet: #444; --line: #bbb; --soft: #fff; --accent: #000; --mark: #eee; }
  html { font-size: 10pt; }
  body { padding: 0; max-width: none; }
  .card img { max-height: 9.5cm; object-fit: contain; object-position: left; }
  nav { display: none; }
  figure, tr, .facts { break-inside: avoid; }
  h2 { break-after: avoid; }
  .scroll { overflow: visible; }
  pre { padding: 0; font-size: 5.5pt; }
}
"""


class Page:
    """Collects a page from top to bottom; every text given to it is shown as it is, never read as HTML.

    title: the main heading and the name of the browser's tab. subtitle: one line beneath it.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle = title, subtitle
        self._parts: list[str] = []
        self._headings: list[tuple[str, str]] = []

    def section(self, heading: str, text: str = "") -> None:
        """Begin a section; it appears in the list of contents. An empty line in `text` begins a new paragraph."""
        if self._headings:
            self._parts.append("</section>")
        anchor = self._free_anchor(heading)
        self._headings.append((anchor, heading))
        self._parts.append(f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{escape(heading)}</h2>')
        self.paragraph(text)

    def paragraph(self, text: str) -> None:
        """Plain text; an empty line begins a new paragraph."""
        self._parts += [f"<p>{escape(part)}</p>" for part in re.split(r"\n\s*\n", text) if part.strip()]

    def facts(self, facts: Mapping[str, str]) -> None:
        """Key figures in a row: the value large, its name beneath."""
        pairs = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
        self._parts.append(f'<dl class="facts">{"".join(pairs)}</dl>')

    def picture(self, png: bytes, caption: str, alt: str) -> None:
        """One picture. `alt` says in words what it shows, for those who cannot see it.

        A PNG that states its resolution (dots per inch) is shown at that size, others pixel for
        pixel with sharp edges, enlarged by a whole factor when tiny. Raises ValueError unless `png` is one.
        """
        self._parts.append(_figure(png, caption, alt))

    def pictures(self, pictures: Iterable[tuple[bytes, str, str]]) -> None:
        """Pictures (png, caption, alt) side by side, as far as the window is wide."""
        self._parts.append(f'<div class="row">{"".join(_figure(*picture) for picture in pictures)}</div>')

    def table(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[str]],
        note: str = "",
        numeric: Collection[int] = (),
        highlight: int | None = None,
    ) -> None:
        """A table; columns in `numeric` are aligned right, row `highlight` stands out, `note` follows beneath.

        The first column names its row unless it is numeric. Raises ValueError for a row that is not
        as long as the header.
        """
        for i, row in enumerate(rows):
            if len(row) != len(header):
                raise ValueError(f"rows[{i}]: got {len(row)} cells; the header has {len(header)}")
        head = "".join(_cell("th", text, i in numeric, "col") for i, text in enumerate(header))
        body = "".join(_row(row, numeric, i == highlight) for i, row in enumerate(rows))
        table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
        self._parts.append(_scrolling(table, f"Table: {', '.join(header)}"))
        if note:
            self._parts.append(f'<p class="note">{escape(note)}</p>')

    def preformatted(self, text: str) -> None:
        """Monospaced text with its line breaks and spaces; wide lines scroll inside their own box."""
        self._parts.append(_scrolling(f"<pre>{escape(text)}</pre>", "Monospaced text"))

    def html(self) -> str:
        """The whole page."""
        contents = "".join(f'<li><a href="#{anchor}">{escape(text)}</a></li>' for anchor, text in self._headings)
        body = [
            f"<header><h1>{escape(self.title)}</h1>",
            f'<p class="subtitle">{escape(self.subtitle)}</p></header>' if self.subtitle else "</header>",
            f'<nav aria-label="Contents"><ol>{contents}</ol></nav>' if contents else "",
            "<main>",
            *self._parts,
            "</section>" if self._headings else "",
            "</main>",
            f"<footer>Written by elucidiff {escape(__version__)}</footer>",
        ]
        return _document(self.title, "\n".join(part for part in body if part))

    def write(self, path: str | Path) -> Path:
        """Write the page as UTF-8, whole or not at all. A page that was there before is replaced."""
        path = Path(path)
        write_atomically(path, self.html().encode())
        return path

    def _free_anchor(self, heading: str) -> str:
        taken = {anchor for anchor, _ in self._headings}
        stem = anchor = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"
        number = 2
        while anchor in taken:
            anchor, number = f"{stem}-{number}", number + 1
        return anchor


def _document(title: str, body: str) -> str:
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _figure(png: bytes, caption: str, alt: str) -> str:
    width, height, sharp = _size(png)
    data = base64.b64encode(png).decode()
    attributes = f'width="{width}" height="{height}" alt="{escape(alt)}" src="data:image/png;base64,{data}"'
    image = f'<img class="pixels" {attributes}>' if sharp else f"<img {attributes}>"
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><div class="card">{image}</div>{below}</figure>\n'


def _size(png: bytes) -> tuple[int, int, bool]:
    """Width and height in CSS pixels (96 to the inch), and whether edges stay sharp."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            width, height = image.size
            dpi = image.info.get("dpi")
    except UnidentifiedImageError:
        raise ValueError(f"png: got {len(png)} bytes that are not a PNG image") from None
    if dpi:
        return round(width * 96 / dpi[0]), round(height * 96 / dpi[1]), False
    factor = max(1, -(-SMALLEST // max(width, height)))
    return width * factor, height * factor, True


def _row(row: Sequence[str], numeric: Collection[int], highlight: bool) -> str:
    cells = (
        _cell("th", text, False, "row") if i == 0 and 0 not in numeric else _cell("td", text, i in numeric)
        for i, text in enumerate(row)
    )
    return ('<tr class="highlight">' if highlight else "<tr>") + "".join(cells) + "</tr>\n"


def _cell(tag: str, text: str, number: bool, scope: str = "") -> str:
    attributes = (f' scope="{scope}"' if scope else "") + (' class="number"' if number else "")
    return f"<{tag}{attributes}>{escape(text)}</{tag}>"


def _scrolling(content: str, name: str) -> str:
    """A box that scrolls sideways by itself, reachable with the keyboard."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(name)}">{content}</div>'
