"""Tables as values, and as lines of text. Touches nothing."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

GOOD, BAD, FAINT = "good", "bad", "faint"

_GAP = "  "
_LEAST = 16  # columns that the last one must have to be wrapped within itself, and for a word
INDENT = " " * 9  # of what is folded: below the second column of most tables


@dataclass(frozen=True)
class Column:
    """A column: its title, and whether its cells stand at its right, as numbers do."""

    title: str
    right: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell that is shown in another way than others: ``good``, ``bad`` or ``faint``."""

    text: str
    style: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: Its columns; the last one takes whatever room there is.
        rows: A cell for each column.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[str | Cell, ...], ...]

    def texts(self) -> Iterator[list[str]]:
        """Yield the titles, and then the texts of each row."""
        yield [column.title for column in self.columns]
        for row in self.rows:
            yield [text_of(cell) for cell in row]

    def widths(self) -> list[int]:
        """Return how many columns of a terminal the widest cell of each column takes."""
        return [max(map(width_of, texts)) for texts in zip(*self.texts(), strict=True)]

    def fits(self, width: int) -> bool:
        """Return whether so many columns are enough, if the last one is wrapped between words."""
        *fixed, last = self.widths()
        words = [word for texts in self.texts() for word in texts[-1].split()]
        longest = max(map(width_of, words), default=0)
        return sum(fixed) + len(_GAP) * len(fixed) + min(last, max(longest, _LEAST)) <= width

    def lines(self, width: int | None = None) -> Iterator[str]:
        """Yield its lines, no longer than `width` if that is given.

        The last column is wrapped within itself; where there is no room even for that, each row is
        folded as a whole. A word that is longer stays whole.
        """
        *fixed, _ = self.widths()
        before = sum(fixed) + len(_GAP) * len(fixed)
        whole = width is not None and not self.fits(width)
        for texts in self.texts():
            *padded, last = map(_padded, self.columns, [*fixed, 0], texts)
            start = _GAP.join([*padded, ""])
            if width is None:
                yield (start + last).rstrip()
            elif whole and start.strip():
                yield from folded((start + last).rstrip(), width)
            elif whole:  # more of the row above
                yield from wrapped(INDENT + last, width, INDENT)
            else:
                pieces = wrapped(last, width - before) or [""]
                yield (start + pieces[0]).rstrip()
                yield from (" " * before + piece for piece in pieces[1:])


def text_of(cell: str | Cell) -> str:
    """Return the text of a cell."""
    return cell if isinstance(cell, str) else cell.text


def style_of(cell: str | Cell) -> str:
    """Return how a cell is shown, ``""`` as others are."""
    return "" if isinstance(cell, str) else cell.style


def folded(line: str, width: int) -> list[str]:
    """Return a line in lines of at most `width` characters; a longer word stays whole."""
    return [line] if len(line) <= width else wrapped(line, width, INDENT)


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Return a text in lines of at most `width` characters, all but the first indented."""
    return textwrap.wrap(
        text,
        width,
        subsequent_indent=indent,
        expand_tabs=False,
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )


def joined(words: Sequence[str]) -> str:
    """Return words with commas between them, without the empty ones."""
    return ", ".join(filter(None, words))


def width_of(text: str) -> int:
    """Return how many columns of a terminal a text takes: signs of the far east take two."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(sign) else 1 + (unicodedata.east_asian_width(sign) in "WF")
        for sign in text
    )


def _padded(column: Column, width: int, text: str) -> str:
    room = " " * (width - width_of(text))
    return room + text if column.right else text + room
