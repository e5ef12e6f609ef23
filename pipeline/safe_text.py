"""Text from outside, such as names of files, made safe to show and to open in a spreadsheet."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

FORMULA_STARTS = tuple("=+-@\t\r\n")


def printable(text: str) -> str:
    r"""Return `text` with everything that cannot be seen written as in Python, such as `\u202e`.

    That is control characters, marks that reverse the direction of reading, and bytes that are not UTF-8.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def as_utf8(path: Path) -> str:
    """Return a path as text; bytes in it that are not UTF-8 are written out."""
    return str(path).encode(errors="backslashreplace").decode()


def printable_lines(text: str) -> str:
    """Return each line of `text` printable."""
    return "\n".join(map(printable, text.split("\n")))


def without_passwords(text: str) -> str:
    """Return `text` with the addresses in it, such as `http://user:secret@host`, without user and password."""
    return re.sub(r"(?<!/)//[^/\s]*@", "//", text)


def cell(text: str) -> str:
    """Return the CSV cell for `text`: what a spreadsheet would take for a formula begins with an apostrophe."""
    return f"'{text}" if text.lstrip("'").startswith(FORMULA_STARTS) else text


def text_of_cell(written: str) -> str:
    """Return the text of which `cell` made a CSV cell."""
    return written[1:] if written.startswith("'") and cell(written[1:]) == written else written


def cells(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a table for people to open in a spreadsheet: its texts are printable, and none is a formula."""
    return on_texts(table, lambda text: cell(printable(text)))


def on_texts(table: "pd.DataFrame", change: Callable[[str], str]) -> "pd.DataFrame":
    """Return a table with every text in it changed, for example by `text_of_cell`."""
    others = table.select_dtypes(exclude=["number", "bool"])  # numbers keep their types
    return table.assign(**others.map(lambda value: change(value) if isinstance(value, str) else value))
