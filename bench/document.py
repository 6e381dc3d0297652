"""A report as blocks, written as Markdown or as one self-contained HTML page."""

from __future__ import annotations

__all__ = ["Block", "Heading", "Image", "Paragraph", "Table", "to_html", "to_markdown"]

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape


@dataclass(frozen=True)
class Heading:
    """A heading of level 1 to 3."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Table:
    """Columns whose name begins with ">" are right-aligned; rows in ``strong`` (by number) stand out."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: frozenset[int] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Image:
    """A PNG; Markdown links to the file, HTML holds the bytes."""

    file: str
    data: bytes
    alt: str


Block = Heading | Paragraph | Table | Image


def to_markdown(blocks: Iterable[Block]) -> str:
    """GitHub's Markdown."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, Paragraph):
        return block.text
    if isinstance(block, Image):
        return f"![{block.alt}]({block.file})"
    lines = [
        "| " + " | ".join(column.removeprefix(">") for column in block.columns) + " |",
        "|" + "|".join("---:" if column.startswith(">") else "---" for column in block.columns) + "|",
    ]
    for number, row in enumerate(block.rows):
        cells = [cell.replace("|", "\\|") for cell in row]
        if number in block.strong:
            cells = [f"**{cell}**" if cell else "" for cell in cells]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def to_html(blocks: Iterable[Block], title: str) -> str:
    """One page without any other file, light or dark as the reader's system is."""
    body = "\n".join(_html(block) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{escape(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, Image):
        source = base64.b64encode(block.data).decode()
        return f'<img src="data:image/png;base64,{source}" alt="{escape(block.alt)}">'
    kinds = [' class="number"' if column.startswith(">") else "" for column in block.columns]
    head = "".join(f"<th{kind}>{escape(column.removeprefix('>'))}</th>" for kind, column in zip(kinds, block.columns))
    rows = []
    for number, row in enumerate(block.rows):
        cells = "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row))
        kind = ' class="strong"' if number in block.strong else ""
        rows.append(f"<tr{kind}>{cells}</tr>")
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n' + "\n".join(rows) + "\n</table></div>"


_STYLE = """
:root { color-scheme: light dark; --text: #1d2127; --soft: #5c6570; --rule: #dfe2e6; --back: #fff; --strong: #eef5fd; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e7eb; --soft: #9aa4b0; --rule: #333a42; --back: #14171a; --strong: #16283a; }
}
body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 26px; } h2 { font-size: 20px; margin-top: 40px; } h3 { font-size: 16px; margin: 26px 0 8px; }
p { color: var(--soft); max-width: 85ch; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } .number { text-align: right; }
td:last-child { white-space: normal; } tr.strong td { background: var(--strong); }
img { max-width: 100%; background: #fff; border-radius: 6px; }
"""
