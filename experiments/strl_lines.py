"""Lines of results of STRL's protocol (experiments/strl_protocol.py): what they say, and when two are the same."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from strl_cells import Budget, Cell, budget_of

Line = dict[str, Any]


def line_of(cell: Cell, budget: Budget) -> Line:
    """What a cell's line says before anything is measured."""
    return {"kind": "cell", **asdict(cell), "budget": budget.as_json()}


def bound_of(pair: tuple[str, str], options: argparse.Namespace) -> Line:
    """What the line of a pair's tables says before anything is counted."""
    return {"kind": "bound", "observation": pair[0], "expert": pair[1], "budget": budget_of(pair, options).as_json()}


def key(line: Line) -> str:
    """What makes two lines the same measurement. A line of another version of the budget is another one's."""
    own = {name: line.get(name) for name in ("kind", "observation", "expert", "model", "attention", "seed", "changed")}
    budget = line["budget"]
    if line["kind"] == "bound":
        budget = Budget(**budget).of_data if budget.keys() == Budget().as_json().keys() else budget
    return json.dumps([own, budget], sort_keys=True)


def is_done(line: Line, options: argparse.Namespace) -> bool:
    """Whether a line holds all that is asked for."""
    return line["kind"] != "cell" or line["model"] != "strl-spike" or not options.integers or "integers" in line
