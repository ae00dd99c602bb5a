"""The documents as text: what the tests of the documentation share."""

import re
from functools import cache
from pathlib import Path

from helpers import ROOT

CLI = ROOT / "docs" / "cli.md"


@cache
def text_of(document: Path) -> str:
    return document.read_text("utf-8")


def sections(document: Path, level: str) -> dict[str, str]:
    """Return the text below each heading of a level."""
    parts = re.split(rf"^{level} (.+)\n", text_of(document), flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def first_cells(section: str, heading: str) -> str:
    """Return the first column of the tables of a section whose first heading is given, as text."""
    tables = re.findall(rf"^\| {heading} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", section, re.M)
    return "\n".join(re.split(r" \| ", row)[0] for rows in tables for row in rows.splitlines())
