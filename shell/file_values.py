"""JSON and YAML that anybody may have written, as plain values: one line says what is wrong with a file.

Both can be small and mean much: numbers of a million digits, thousands of levels, and in YAML texts that repeat one
another by reference until no memory holds them.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from dsf.shell.errors import UserError
from dsf.shell.files import require_plain_file
from dsf.shell.plain_text import DEEPEST, plain, require_plain

LARGEST_YAML = 1 << 18
"""Bytes of a YAML file."""
LARGEST_JSON = 1 << 26
"""Bytes of a JSON file, or of all lines of one."""
MOST_VALUES = 100_000
"""Values of a YAML file, those that it repeats by reference counted each time."""
MERGE = "tag:yaml.org,2002:merge"
"""Stands before a mapping whose fields belong here, too; a field of one's own comes before them."""


def read_bytes(path: Path, what: str, largest: int) -> bytes:
    """A file's content.

    Args:
        path: of the file.
        what: it is, for messages.
        largest: size (bytes).

    Raises:
        UserError: it is no file, or larger.
        OSError: it is missing, or cannot be read.
    """
    require_plain_file(path, what)
    if (size := path.stat().st_size) > largest:
        raise UserError(f"cannot read {what} {path}: it has {size:,} bytes, limit {largest:,}; name the right file")
    return path.read_bytes()


def read_text(path: Path, what: str, largest: int = LARGEST_JSON) -> str:
    """A file's text.

    Raises:
        UserError: see :func:`read_bytes`; or it is no text.
        OSError: it is missing, or cannot be read.
    """
    try:
        return read_bytes(path, what, largest).decode()
    except UnicodeDecodeError:
        raise UserError(f"cannot read {what} {path}: it is no text") from None


def parse_json(text: str | bytes, what: str, line_breaks: bool = False) -> Any:
    """JSON values; every text among them is fit to be shown.

    Args:
        text: of the file, or of a line.
        what: it is, for messages.
        line_breaks: see :func:`~dsf.shell.plain_text.require_plain`.

    Raises:
        UserError: it is no JSON, or see :func:`~dsf.shell.plain_text.require_plain`.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{what} is no JSON ({_told(error)})") from None
    require_plain(values, what, line_breaks)
    return values


def read_json(path: Path, what: str, largest: int = LARGEST_JSON, line_breaks: bool = False) -> Any:
    """The values of a JSON file.

    Raises:
        UserError: see :func:`read_text` and :func:`parse_json`; the message names the file.
        OSError: it is missing, or cannot be read.
    """
    text = read_text(path, what, largest)
    return parse_json(text, f"{what} {path}", line_breaks)


def read_yaml(path: Path, what: str) -> Any:
    """The values of a YAML file.

    Args:
        path: of the file.
        what: it is, for messages.

    Raises:
        UserError: it cannot be read or is no YAML; a field stands twice, which would hide a value; it is too large, too
            deep, or repeats itself without end. The message names the file.
    """
    try:
        content = read_bytes(path, what, LARGEST_YAML)
    except OSError as error:
        raise UserError(f"cannot read {what} {path}: {error.strerror or 'it cannot be opened'}") from None
    try:
        loader = _Loader(content)  # a SafeLoader: builds plain values only
        try:
            values = loader.get_single_data()
        finally:
            loader.dispose()
    except UserError as error:
        raise UserError(f"{what} {path}: {error}") from None
    except (yaml.YAMLError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError, MemoryError) as error:
        # ValueError and those behind it: a date or a tagged number that is none
        raise UserError(f"{what} {path} is no YAML: {_told(error)}; correct it") from None
    except RecursionError:
        raise UserError(f"{what} {path} is nested too deeply: flatten it") from None
    require_plain(values, f"{what} {path}", line_breaks=True)
    return values


def _told(error: BaseException) -> str:
    return plain(" ".join(str(error).split())) or type(error).__name__


class _Loader(yaml.SafeLoader):
    """Plain YAML, but a field that is there twice is an error, and references count as what they repeat."""

    def get_single_node(self) -> yaml.Node | None:
        """The file's one document, not yet values."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _require_size(node)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping's values."""
        seen: set[Hashable] = set()
        for place, _ in node.value:
            if place.tag == MERGE:
                continue
            key = self.construct_object(place, deep=True)
            if isinstance(key, Hashable) and key in seen:
                problem = f"the field '{key}' is there twice: keep one of them"
                raise yaml.constructor.ConstructorError(None, None, problem, place.start_mark)
            if isinstance(key, Hashable):
                seen.add(key)
        values: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return values


def _require_size(root: yaml.Node) -> None:
    """Count a document's values before there are any.

    Raises:
        UserError: more than :data:`MOST_VALUES`, more than :data:`~dsf.shell.plain_text.DEEPEST` levels, or one that
            holds itself.
    """
    counts: dict[int, int] = {}
    above: set[int] = set()

    def count(node: yaml.Node, depth: int) -> int:
        if id(node) in above:
            raise UserError(f"line {node.start_mark.line + 1} refers to itself: write the value there")
        if depth > DEEPEST:
            raise UserError(f"line {node.start_mark.line + 1} is below {DEEPEST} levels: flatten it")
        if id(node) not in counts:
            above.add(id(node))
            total = 1 + sum(count(child, depth + 1) for child in _children(node))
            above.remove(id(node))
            if total > MOST_VALUES:
                raise UserError(f"it has more than {MOST_VALUES:,} values, references included: shorten it")
            counts[id(node)] = total
        return counts[id(node)]

    count(root, 0)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
