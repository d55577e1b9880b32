"""Text that a file brings, where people read it: on terminals, in pages and in tables.

A name may hold what a terminal takes for a command (it clears the screen, renames the window, hides what follows), what
turns the writing direction round, or half of a character, at which printing fails.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Any

from dsf.shell.errors import UserError

STEERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff\ufffe\uffff")
"""Marks that turn the direction of what follows, and what no text may hold."""
STEERING_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")
"""Control characters, halves of a character, and line breaks that are not called so."""
DEEPEST = 64
"""Levels of lists and mappings in one another that a file may have."""
SHOWN = 60
"""Characters of a value that a message repeats."""


def plain(text: str) -> str:
    r"""A text on one line that steers nothing: whatever would is written as an escape, such as ``\x1b``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(character) if _steers(character) else character for character in text)


def _steers(character: str) -> bool:
    return character in STEERING or unicodedata.category(character) in STEERING_CATEGORIES


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def shown(value: Any) -> str:
    """A value of a file as a message repeats it: short, on one line."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # ValueError: a number of more digits than Python writes out
        text = f"a {type(value).__name__}"
    text = plain(text)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def markdown_text(text: str) -> str:
    """A name as Markdown shows it: it opens no tag, no link and no column of a table."""
    written = plain(text).replace("<", "&lt;")
    return written.replace("|", "\\|").replace("[", "\\[")


def figure_text(text: str) -> str:
    """A name as a picture shows it: matplotlib takes what stands between dollars for a formula."""
    return plain(text).replace("$", "\\$")


def require_plain(values: Any, what: str, line_breaks: bool = False) -> None:
    """Refuse values of a file (JSON's or YAML's) whose texts, names included, steer what shows them.

    Args:
        values: mappings, lists and what they hold.
        what: they belong to, for the message.
        line_breaks: texts, not names, may have several lines and tabs.

    Raises:
        UserError: naming the place: such a text, or more than :data:`DEEPEST` levels.
    """
    for place, value, is_name in _texts(values, what):
        found = value.replace("\n", "").replace("\t", "") if line_breaks and not is_name else value
        if plain(found) != found:
            raise UserError(f"{_told(place)} holds control characters: {shown(value)}; write it without")


def _texts(values: Any, what: str) -> Iterator[tuple[list[Any], str, bool]]:
    """Every text with its place (changed as soon as the next one is asked for), and whether it is a name."""
    opened: list[Iterator[tuple[Any, Any]]] = [iter([(what, values)])]
    place: list[Any] = [what]
    while opened:
        entry = next(opened[-1], None)
        if entry is None:
            opened.pop()
            place.pop()
            continue
        place[-1], value = entry
        if len(opened) > 1 and isinstance(place[-1], str):
            yield place, place[-1], True
        if isinstance(value, str):
            yield place, value, False
        elif isinstance(value, (dict, list, tuple)):
            opened.append(iter(value.items() if isinstance(value, dict) else enumerate(value)))
            place.append("")
        if len(opened) > DEEPEST:
            raise UserError(f"{what} has more than {DEEPEST} levels: flatten it")


def _told(place: list[Any]) -> str:
    first, *inner = place
    parts = (f"[{part}]" if isinstance(part, int) else f".{plain(str(part))[:SHOWN]}" for part in inner)
    return first + "".join(parts)
