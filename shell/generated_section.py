"""The parts of documents that a command writes: what stands between two marker lines, and nothing else."""

from __future__ import annotations

from pathlib import Path

from dsf.shell.errors import UserError
from dsf.shell.files import write_text


def markers(name: str) -> tuple[str, str]:
    """The lines that a section stands between, such as ``<!-- energy:begin -->`` and ``<!-- energy:end -->``."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def replace_section(path: Path, name: str, text: str) -> None:
    """Write a document's section, whole or not at all; a document that does not exist becomes this section alone.

    Args:
        path: document.
        name: of the section, in its :func:`markers`.
        text: what is to stand between them.

    Raises:
        UserError: see :func:`require_section`.
    """
    before, after = _around(path, name)
    inside = text if text.endswith("\n") else f"{text}\n"
    write_text(path, f"{before}{inside}{after}")


def require_section(path: Path, name: str) -> None:
    """Refuse a document that :func:`replace_section` cannot write, before any work is done.

    Raises:
        UserError: it is no text, or has no such section, or more than one, or one whose end comes first.
    """
    _around(path, name)


def _around(path: Path, name: str) -> tuple[str, str]:
    """What stands before and behind a section, its markers included."""
    lines, (begin, end) = _lines_of(path), markers(name)
    if not lines:
        return f"{begin}\n", f"{end}\n"
    begins, ends = ([place for place, line in enumerate(lines) if line.strip() == marker] for marker in (begin, end))
    if not begins or not ends:
        raise UserError(f"{path} has no part between {begin} and {end}: add these two lines where it belongs")
    if len(begins) > 1 or len(ends) > 1:
        raise UserError(f"{path} has {begin if len(begins) > 1 else end} more than once: keep one pair of these lines")
    if ends < begins:
        raise UserError(f"{path} has {end} above {begin}: put the first line below the second")
    return "".join(lines[: begins[0] + 1]), "".join(lines[ends[0] :])


def _lines_of(path: Path) -> list[str]:
    """A document with its line ends as they are; none where there is no document."""
    if not path.exists():
        return []
    try:
        return path.read_bytes().decode().splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UserError(f"cannot read {path}: {reason}") from None
