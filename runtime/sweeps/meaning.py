"""What of a module's text decides what it computes: its syntax tree without comments, docstrings and messages.

Messages are the texts that only people read: arguments of exceptions, of ``print`` and ``warn`` and of checks called
``require``, the second half of an assertion, and texts that a function puts together for one of these. A text that a
function returns counts, because nobody knows what its callers do with it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

SPEAKING = {"add_task", "print", "require", "warn"}
"""Functions and methods that tell people something."""
EXCEPTIONS = ("Error", "Failed", "Warning")
"""How the names of exceptions end."""

_Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def meaning(source: str) -> str:
    """A module without what does nothing when it runs, and without what it tells people."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not _is_bare_text(one)]  # type: ignore[attr-defined]
    for node in ast.walk(tree):
        if isinstance(node, _Function):
            _drop_prepared_messages(node)
    _drop_messages(tree, set())
    return ast.dump(tree)


def _drop_messages(tree: ast.AST, prepared: set[str]) -> None:
    """Take the texts out of all that tells people something; names in ``prepared`` stand for texts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            node.msg = None
        elif isinstance(node, ast.Call) and _speaks(node):
            node.args = [one for one in node.args if not _is_text(one, prepared)]
            node.keywords = [one for one in node.keywords if not _is_text(one.value, prepared)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            node.exc.args = [one for one in node.exc.args if not _is_text(one, prepared)]
            node.exc.keywords = [one for one in node.exc.keywords if not _is_text(one.value, prepared)]


def _speaks(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in SPEAKING or name.endswith(EXCEPTIONS)


def _drop_prepared_messages(function: ast.AST) -> None:
    """Take out local texts that nothing reads but a message, and texts that only these read."""
    if any(isinstance(node, (ast.ClassDef, ast.Global, ast.Nonlocal)) for node in ast.walk(function)):
        return  # what such a function assigns may be read elsewhere
    while True:
        assigned = _assigned_texts(function)
        _drop_messages(function, set(assigned))
        read = {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        unread = [one for name, found in assigned.items() if name not in read for one in found]
        if not unread:
            return
        for node in ast.walk(function):
            for field in ("body", "orelse", "finalbody"):
                statements = getattr(node, field, None)
                if isinstance(statements, list):
                    setattr(node, field, [one for one in statements if one not in unread])


def _assigned_texts(function: ast.AST) -> dict[str, list[ast.stmt]]:
    """Local names that nothing but texts is assigned to, with the assignments."""
    found: dict[str, list[ast.stmt]] = {}
    stored = [node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    for statement, name in _single_assignments(function):
        found.setdefault(name, []).append(statement)
    return {name: ones for name, ones in found.items() if len(ones) == stored.count(name)}


def _single_assignments(function: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and _is_text(node.value, set()):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if len(names) == len(node.targets) == 1:
                yield node, names[0]


def _is_bare_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_text(node: ast.AST, prepared: set[str]) -> bool:
    """Whether an expression is a text for certain, as it stands."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    if isinstance(node, ast.Name):
        return node.id in prepared
    if isinstance(node, ast.BinOp):
        return _is_text(node.left, prepared) or _is_text(node.right, prepared)
    if isinstance(node, ast.IfExp):
        return _is_text(node.body, prepared) and _is_text(node.orelse, prepared)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr in ("format", "join") and _is_text(node.func.value, prepared)
    return isinstance(node, ast.JoinedStr)
