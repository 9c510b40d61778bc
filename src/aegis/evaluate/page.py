"""A report as one page of sections: the same content in HTML, with its pictures inside, and in
Markdown."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape


@dataclass(frozen=True)
class Section:
    """A part of a page: its text, then its pictures, its table, its list.

    Args:
        figures: PNG files, named for what they show.
        marks: a word for each row of the table, by which it is coloured.
    """

    title: str
    text: str = ""
    figures: Sequence[Path] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    marks: Sequence[str] = ()
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """A title, what matters most, and sections."""

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]

    def html(self) -> str:
        """Render one file that needs no other."""
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            autoescape=select_autoescape(["html", "j2"]),
        )
        environment.filters["inline"] = inline
        return environment.get_template("page.html.j2").render(page=self)

    def markdown(self) -> str:
        """Render it with links to the pictures, which lie in `figures/`."""
        parts = [f"# {plain(self.title)}", *map(plain, self.lead)]
        for section in self.sections:
            parts.append(f"## {plain(section.title)}")
            parts += [plain(section.text)] if section.text else []
            parts += [f"![{figure_name(p)}](figures/{p.name})" for p in section.figures]
            parts += [markdown_table(section.columns, section.rows)] if section.rows else []
            parts += ["\n".join(f"- {plain(line)}" for line in section.lines)] * bool(section.lines)
        return "\n\n".join(parts) + "\n"


def figure_name(path: Path) -> str:
    """Return what a picture shows, by its file's name."""
    return path.stem.replace("_", " ")


def inline(path: Path) -> dict[str, Any]:
    """Return a PNG as the text and the address of an image."""
    data = base64.b64encode(path.read_bytes()).decode()
    return {"alt": figure_name(path), "src": f"data:image/png;base64,{data}"}


def plain(text: str) -> str:
    """Return a text as one line of Markdown that shows every mark as it is."""
    marked = re.sub(r"([\\`*_{}\[\]#|!~$])", r"\\\1", " ".join(text.split()))
    return html.escape(marked, quote=False)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; the first column stands left, the others right."""
    marks = ["---", *["---:"] * (len(columns) - 1)]
    lines = [columns, marks, *([plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
