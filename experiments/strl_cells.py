"""The cells of STRL's protocol (experiments/strl_protocol.py): what is trained on what, and with which budget."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

OBSERVATIONS, EXPERTS = ("position", "walls", "view"), ("shortest", "wall_follower")
MODELS = (("strl", "bidirectional"), ("strl", "causal"), ("dt", "causal"), ("strl-spike", "causal"))
SWEEPS: dict[str, tuple[str, ...]] = {
    "ticks": ("1", "2", "4", "8"),
    "threshold": ("0.25", "0.5", "1.0", "2.0"),
    "tau": ("1.25", "2.0", "4.0", "8.0"),
}
PUBLISHED_VALUES = {"ticks": "4", "threshold": "1.0", "tau": "2.0"}
"""The paper's: rows of the sweeps that are cells of the whole table."""
SWEPT_ON = (("walls", "wall_follower"), ("position", "wall_follower"))
"""What a sweep trains on: a move that present and last move tell, and one that the past tells in part."""
PUBLISHED_ON = ("position", "shortest")
"""The paper's observation and expert."""


@dataclass(frozen=True)
class Budget:
    """What a figure depends on beside its cell; the same for all models of a pair of observation and expert.

    Attributes:
        mazes: of training.
        table_mazes: that look-up tables count, more than networks learn from: a table does not generalise.
        held_out: validation mazes, and as many test mazes.
        steps, batch, learning_rate: of training, ``batch`` in windows.
        width, blocks: of the DSFormer whose number of parameters all models have.
        heads: of strl and dt.
        context: tokens of a window.
        whole_walks: test mazes whose whole recorded walks token accuracy asks for; 0: the first window of every test
            maze's walk, as the paper does.
        episodes: unseen mazes that a policy walks through.
    """

    mazes: int = 5_000
    table_mazes: int = 50_000
    held_out: int = 500
    steps: int = 800
    batch: int = 8
    learning_rate: float = 4e-3
    width: int = 64
    blocks: int = 2
    heads: int = 2
    context: int = 20
    whole_walks: int = 64
    episodes: int = 50

    def as_json(self) -> dict[str, Any]:
        """As a line of results holds it."""
        return asdict(self)

    @property
    def of_data(self) -> dict[str, int]:
        """What a look-up table depends on: not on how networks are trained."""
        return {"table_mazes": self.table_mazes, "held_out": self.held_out, "scored": self.scored or 0}

    @property
    def scored(self) -> int | None:
        """Tokens of each recorded walk that token accuracy asks for; None for all."""
        return None if self.whole_walks else self.context


LOCAL = Budget()
"""For what the present and the last move tell, or cannot tell."""
PUBLISHED = replace(LOCAL, steps=4_000, context=51, whole_walks=0, episodes=20)
"""For the paper's pair. The last token of a window has no token behind it to look at, so the window must be long (the
paper's holds 100) for the bidirectional form to show what it does; and it takes long to find the next token. An odd
number, because moves come in pairs (carved cells are two apart): the last one is then the second of a pair."""
QUICK = Budget(
    mazes=60, table_mazes=60, whole_walks=4, held_out=30, steps=5, width=16, blocks=1, context=10, episodes=2
)


@dataclass(frozen=True)
class Cell:
    """One trained policy. ``changed`` is what a sweep sets beside the paper's values."""

    observation: str
    expert: str
    model: str
    attention: str
    seed: int
    changed: dict[str, str] = field(default_factory=dict)

    @property
    def pair(self) -> tuple[str, str]:
        """Observation and expert."""
        return self.observation, self.expert

    @property
    def name(self) -> str:
        """Name of its run directory."""
        changes = [f"{name}{value}" for name, value in self.changed.items()]
        return "-".join([*self.pair, self.model, self.attention, *changes, f"seed{self.seed}"])


def cells(seeds: list[int], sweep_seeds: list[int]) -> list[Cell]:
    """Every cell: a whole table per seed, then the sweeps of causal STRL."""
    chosen = [
        Cell(observation, expert, *model, seed)
        for seed in seeds
        for observation in OBSERVATIONS
        for expert in EXPERTS
        for model in MODELS
    ]
    for seed in sweep_seeds:
        chosen += [swept(pair, name, value, seed) for pair in SWEPT_ON for name in SWEEPS for value in SWEEPS[name]]
    return list({cell.name: cell for cell in chosen}.values())


def swept(pair: tuple[str, str], name: str, value: str, seed: int) -> Cell:
    """One cell of a sweep of causal STRL."""
    return Cell(*pair, "strl", "causal", seed, {} if value == PUBLISHED_VALUES[name] else {name: value})


def add_budget_options(parser: argparse.ArgumentParser) -> None:
    """An option per field of a budget; what is not given is the pair's declared value."""
    for one in fields(Budget):
        flag = f"--{one.name.replace('_', '-')}"
        local, published = getattr(LOCAL, one.name), getattr(PUBLISHED, one.name)
        declared = f"{local}" if local == published else f"{local}, for position and shortest {published}"
        parser.add_argument(flag, type=type(local), help=f"default {declared}")


def budget_of(pair: tuple[str, str], options: argparse.Namespace) -> Budget:
    """The budget of one pair of observation and expert, with what the command line changes."""
    declared = QUICK if options.quick else PUBLISHED if pair == PUBLISHED_ON else LOCAL
    given = {one.name: getattr(options, one.name) for one in fields(Budget)}
    return replace(declared, **{name: value for name, value in given.items() if value is not None})


def training_arguments(cell: Cell, budget: Budget) -> list[str]:
    """What ``dsf-train`` is told; sizes are chosen so that all models have DSFormer's number of parameters."""
    window = 1 + (budget.context - 1) // budget.blocks  # the receptive field then fits into the context: stream mode
    settings: dict[str, object] = {
        "model.width": budget.width,
        "model.blocks": budget.blocks,
        "model.context": budget.context,
    }
    settings |= {"model.window": window, "steps": budget.steps, "batch-size": budget.batch, "seed": cell.seed}
    settings |= {"learning-rate": budget.learning_rate, "eval-episodes": 0, "checkpoint-every": 500}
    if cell.model != "strl-spike":
        settings |= {"policy": cell.model, "rival.heads": budget.heads}
    if cell.model == "strl":
        settings |= {"rival.strl.attention": cell.attention}
        settings |= {f"rival.strl.{name}": value for name, value in cell.changed.items()}
    return [item for name, value in settings.items() for item in (f"--{name}", str(value))]
