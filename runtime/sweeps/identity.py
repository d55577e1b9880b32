"""What makes two cells the same: the dataset's bytes, every resolved setting, and the code that computes the result.

A cell's *place* is a hash of its settings and its dataset's id: that finds its line for a table, anywhere. Its *key*
adds the dataset's content hash and :func:`code_version`: that decides whether it has to run.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsf.export.options import ExportConfig
from dsf.runtime.sweeps.meaning import meaning
from dsf.runtime.sweeps.spec import LAYER_PRICED, RESERVED, Cell, Setting, is_kept
from dsf.shell.command import parse_arguments
from dsf.shell.errors import UserError
from dsf.tasks import get_task
from dsf.train.config.rivals import RivalConfig
from dsf.train.config.strl import ADDED_TO_STRL
from dsf.train.config.training import ADDED_SETTINGS, ADDED_TO_MODEL, TrainConfig, to_json
from dsf.train.conservative_q_learning import CQLConfig
from dsf.train.data.recipes import RECIPES
from dsf.train.data.registry import REGISTRY, resolve

WITHOUT_EFFECT = ("dataset", "out", "resume", "threads", "log_every", "checkpoint_every", "preset")
"""Fields of a TrainConfig that no result depends on, beyond the last bits of its sums; a preset's model is a field."""
CQL = "cql"
"""Value of the setting policy that stands for another command, dsf-train cql."""
CHECKPOINTS = 20
"""Checkpoints of a run, where the sweep does not say: an interruption costs at most one such share of it."""
KEY_DIGITS = 20
START = "start"
"""What stands for the path of a training that another starts from, while options are read."""


@dataclass(frozen=True)
class Resolved:
    """A cell as dsf-train and dsf-export understand it.

    Attributes:
        cell: what was asked for.
        config: its training, with a run directory that nobody uses.
        arguments: of dsf-train, without --out, --threads, --resume, and the --init of ``start``.
        export: arguments of dsf-export, without RUN and --out; None where the float policy is scored.
        dataset_id: Minari id.
        start: the training that this one starts from.
    """

    cell: Cell
    config: TrainConfig | CQLConfig
    arguments: tuple[str, ...]
    export: tuple[str, ...] | None
    dataset_id: str
    start: Resolved | None = None

    @property
    def training(self) -> dict[str, Any]:
        """Every setting that its training depends on; one younger than sweeps only where it is used, so that earlier
        results keep their places. What it starts from counts by its settings, not by where it is.
        """
        settings, usual = to_json(self.config), dataclasses.asdict(RivalConfig())
        if "rival" in settings:  # field by field: rivals to come bring more of them
            settings["rival"] = {name: value for name, value in settings["rival"].items() if value != usual[name]}
            strl = settings["rival"].get("strl", {})
            settings["rival"] |= {"strl": _without(strl, ADDED_TO_STRL)} if strl else {}
        if self.start is not None:
            settings["init"] = self.start.training
        if "model" in settings:
            settings["model"] = _without(settings["model"], ADDED_TO_MODEL)
        added = {**ADDED_SETTINGS, "rival": {}}.items()
        return {
            name: value for name, value in settings.items() if name not in WITHOUT_EFFECT and (name, value) not in added
        }

    @property
    def scored(self) -> list[Any]:
        """What is made of the training, but for the evaluation's episodes; a precision only where one is asked for, so
        that earlier results keep their places.
        """
        asked: list[Any] = [] if self.precision == "fp32" else [self.precision]
        if self.cell.counts is not None:
            asked.append(dataclasses.asdict(self.cell.counts))
        return [self.export, self.cell.energy, *asked]

    @property
    def precision(self) -> str:
        """What a rival is scored at: fp32, or the integers by their bits, as int8."""
        trained = self.cell.precision == "trained" and isinstance(self.config, TrainConfig)
        return f"int{self.config.bits}" if trained else self.cell.precision  # type: ignore[union-attr]

    @property
    def place(self) -> str:
        """Hash of dataset id and settings."""
        return _digest([self.dataset_id, self.training, *self.scored])

    def training_key(self, content_hash: str) -> str:
        """Key of what cells with the same training share."""
        start = [] if self.start is None else [self.start.training_key(content_hash)]
        return _digest([content_hash, self.training, code_version(self.command), self.software, *start])

    @property
    def command(self) -> str:
        """Whose code trains it, for :func:`code_version`."""
        return CQL if isinstance(self.config, CQLConfig) else "train"

    @property
    def software(self) -> dict[str, str]:
        """Versions of what computes beneath dsf."""
        return software("d3rlpy") if isinstance(self.config, CQLConfig) else software()

    def key(self, content_hash: str) -> str:
        """Content hash of the cell's result."""
        return _digest([self.training_key(content_hash), *self.scored, self.code])

    @property
    def code(self) -> str:
        """Version of the code behind the result: that of the integers, too, where they are made for score or energy."""
        integers = self.export is not None or self.cell.energy == "spiking"
        return code_version("export" if integers else self.command)


def _without(values: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    """The values, but for those that are as usual."""
    return {name: value for name, value in values.items() if (name, value) not in usual.items()}


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:KEY_DIGITS]


TRAINING: dict[str, tuple[str, ...]] = {
    "dsf.tasks": ("aggregate_metrics.py", "behaviour", "maze_picture.py"),
    "dsf.train": (
        "__main__.py",
        "cli.py",
        "conservative_q_learning.py",
        "data/collect.py",
        "data/controllers.py",
        "data/episode_file.py",
        "data/hdf5_calls.py",
        "data/importing.py",
        "data/maze_sets.py",
        "data/maze_walks.py",
        "data/minari_store.py",
        "data/names.py",
        "data/recipes.py",
        "data/registry.py",
        "data_cli.py",
        "evaluation/command.py",
        "evaluation/lookup_table.py",
        "evaluation/token_accuracy.py",
        "event_file.py",
        "terminal.py",
    ),
}
"""Packages whose code a training's result depends on, and what in them it does not depend on: command lines, pictures
and tables, and what makes, imports and names datasets, because the content hash covers their bytes. What is new in a
package counts until it is listed here.
"""
INTEGERS: dict[str, tuple[str, ...]] = {
    "dsf.export": ("__main__.py", "cli.py", "commands.py", "inspect.py", "placement", "targets", "terminal.py"),
    "dsf.runtime.engines": (),
    "dsf.runtime.kernels": (),
}
"""The same for what makes a training's integers and drives them."""
OTHER_TRAINING = ("conservative_q_learning.py",)
"""What is left out of "dsf.train" for all trainings but its own."""


@functools.cache
def code_version(kind: str) -> str:
    """Hash of the code behind a training ("train", or "cql" for that command's) or behind integers ("export": what
    makes and drives them, too).

    Comments, docstrings, layout and messages do not count: what the parser makes of the modules otherwise does, and the
    C kernels' text.

    Raises:
        FileNotFoundError: a package is not there or empty, or nothing has the name of what is left out.
    """
    packages = {**TRAINING, **(INTEGERS if kind == "export" else {})}
    if kind == CQL:
        packages["dsf.train"] = tuple(name for name in TRAINING["dsf.train"] if name not in OTHER_TRAINING)
    digest = hashlib.sha256()
    for package, without in packages.items():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(f"a sweep's results depend on {package}, which is not there")
        digest.update(f"{package}\n{folder_code(Path(spec.submodule_search_locations[0]), without)}".encode())
    return digest.hexdigest()[:KEY_DIGITS]


def folder_code(folder: Path, without: Sequence[str] = ()) -> str:
    """All code below a folder: its modules' :func:`meaning`, and C sources as they are.

    Args:
        folder: of a package.
        without: files and folders below it that do not count.

    Raises:
        FileNotFoundError: there is no code in the folder, or in one below it, or nothing has a name in ``without``.
    """
    left_out = [folder / name for name in without]
    if missing := [str(path) for path in left_out if not path.exists()]:
        raise FileNotFoundError(f"left out of the hash of {folder}, but not there: {', '.join(missing)}")
    sources = sorted(
        path
        for path in [*folder.rglob("*.py"), *folder.rglob("*.[ch]")]
        if not any(path == other or other in path.parents for other in left_out)
    )
    filled = {parent for path in sources if path.name != "__init__.py" for parent in path.parents}
    if empty := sorted({folder, *(path.parent for path in sources)} - filled):
        raise FileNotFoundError(f"a sweep's results depend on the code in {empty[0]}, and there is none")
    texts = [(path, path.read_text()) for path in sources]
    return "".join(
        f"{path.relative_to(folder)}\n{meaning(text) if path.suffix == '.py' else text}\n" for path, text in texts
    )


def software(*more: str) -> dict[str, str]:
    """Versions of what computes beneath dsf, and of further packages."""
    found = {}
    for name in ("torch", "mujoco", "gymnasium", *more):
        try:
            found[name] = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def resolve_cell(cell: Cell) -> Resolved:
    """Have the real parsers of dsf-train and dsf-export read a cell.

    Raises:
        UserError: naming the setting that they refuse.
    """
    settings = dict(cell.settings)
    if settings.get("policy") == CQL:
        return _resolve_cql(cell, settings)
    require_known_settings(settings)
    start = None if cell.start is None else _resolve_start(cell.start)
    target = first_target(cell.dataset)
    if "eval-targets" not in settings and target is not None:
        settings["eval-targets"] = target
    evaluation = cell.evaluation
    settings |= {"seed": cell.seed, "eval-episodes": evaluation.episodes, "eval-seed": evaluation.seed}
    settings |= {"eval-every": evaluation.every}
    arguments = (cell.dataset, *as_arguments(settings))
    config = _as_trained(cell.dataset, settings if start is None else {**settings, "init": START})
    if start is not None:
        _require_same_model(config, start, settings)
    if "checkpoint-every" not in settings:
        arguments = (*arguments, "--checkpoint-every", str(max(1, config.phase_steps // CHECKPOINTS)))
    if cell.precision != "fp32" and config.policy == "dsformer":
        raise UserError(
            f"precision {cell.precision} requires a rival: write export: {{bits: 8}} for a DSFormer's integers"
        )
    resolved = Resolved(cell, config, arguments, None, resolve(cell.dataset), start)
    if config.policy != "dsformer" and config.qat_steps and resolved.precision != f"int{config.bits}":
        raise UserError(
            f"policy {config.policy} with qat-steps is scored by its integers of {config.bits} bits alone: write "
            "precision: trained beside the settings"
        )
    if cell.precision == "trained" and not config.qat_steps:
        raise UserError("precision trained requires qat-steps: add them, or write precision: int8")
    if cell.energy == "layers" and config.policy not in LAYER_PRICED:
        known = " or ".join(LAYER_PRICED)
        raise UserError(f"energy layers requires policy {known}, not {config.policy}: use its own rule")
    export = None
    if cell.export is not None:
        export = as_arguments(dict(cell.export))
        parse_arguments(ExportConfig, "dsf-export", "", ["RUN", *export])
    return dataclasses.replace(resolved, export=export)


def _resolve_start(cell: Cell) -> Resolved:
    """A training that another one starts from.

    Raises:
        UserError: naming its model, and why nothing can start from it.
    """
    settings = dict(cell.settings)
    if settings.get("policy") == CQL or settings.get("qat-steps"):
        what = "policy cql" if settings.get("policy") == CQL else "qat-steps, after which nothing is trained on"
        raise UserError(f"no training starts from {cell.model}: it has {what}; start from a float model")
    try:
        return resolve_cell(cell)
    except UserError as error:
        raise UserError(f"start {cell.model}: {error}") from None


def _require_same_model(config: TrainConfig, start: Resolved, settings: dict[str, Setting]) -> None:
    """Refuse settings that make another model than the one to start from.

    Raises:
        UserError: naming the first of them.
    """
    for name in ("policy", *filter(is_kept, settings)):
        mine, theirs = (_value(one, name) for one in (config, start.config))
        if mine != theirs:
            raise UserError(
                f"{name} is {mine}, and it starts from {start.cell.model} with {theirs}: fine-tuning cannot change it"
            )


def _value(config: Any, option: str) -> Any:
    """What a config has for an option."""
    for part in option.replace("-", "_").split("."):
        config = getattr(config, part)
    return config


def _as_trained(dataset: str, settings: dict[str, Setting]) -> TrainConfig:
    """What dsf-train makes of a cell's settings.

    Its parser takes 50 ms, so it reads what only differs in dataset, seed and targets once.

    Raises:
        UserError: naming the setting that it refuses.
    """
    own: dict[str, Any] = {"dataset": dataset}
    shared = dict(settings)
    if type(shared.get("seed")) is int:
        own["seed"] = shared.pop("seed")
    if type(shared.get("eval-targets")) in (int, float):
        own["eval_targets"] = (float(typing.cast(float, shared.pop("eval-targets"))),)
    return dataclasses.replace(_parsed(as_arguments(shared)), **own)


@functools.lru_cache(maxsize=1024)
def _parsed(words: tuple[str, ...]) -> TrainConfig:
    """A training of no dataset in particular."""
    config: TrainConfig = parse_arguments(TrainConfig, "dsf-train", "", ("DATASET", *words))
    return config


def _resolve_cql(cell: Cell, settings: dict[str, Setting]) -> Resolved:
    """A cell of dsf-train cql: what it shares with dsf-train holds for it, too, and it does not use the rest.

    Raises:
        UserError: naming the setting that is refused.
    """
    if cell.export is not None or cell.precision != "fp32":
        raise UserError("policy cql has neither integers nor spikes here: drop export and precision")
    own = option_names(CQLConfig)
    _require_known(settings, [*own, *option_names(TrainConfig)])
    used = {name: value for name, value in settings.items() if name in own}
    used |= {"seed": cell.seed, "eval-episodes": cell.evaluation.episodes, "eval-seed": cell.evaluation.seed}
    words = (cell.dataset, *as_arguments(used))
    config: CQLConfig = parse_arguments(CQLConfig, "dsf-train cql", "", words)
    return Resolved(cell, config, (CQL, *words), None, resolve(cell.dataset))


def as_arguments(settings: dict[str, Setting]) -> tuple[str, ...]:
    """Options as words of a command line: true and false become --x and --no-x, a list several words."""
    words: list[str] = []
    for name, value in settings.items():
        prefix, _, last = name.rpartition(".")
        if isinstance(value, bool):
            negated = f"{prefix}.no-{last}" if prefix else f"no-{last}"
            words.append(f"--{name if value else negated}")
        else:
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else [value])]
    return tuple(words)


def first_target(dataset: str) -> float | None:
    """The declared target return of a dataset with a known name; None: dsf-train asks for all of its task's."""
    by_id = {entry.source: entry.task for entry in REGISTRY.values()}
    by_id |= {recipe.dataset_id: recipe.task for recipe in RECIPES.values()}
    task = by_id.get(resolve(dataset))
    return None if task is None else get_task(task).target_returns[0]


def require_known_settings(settings: Iterable[str]) -> None:
    """Refuse names that are no options of dsf-train, or that a cell cannot set.

    Raises:
        UserError: naming the first of them.
    """
    _require_known(settings, option_names(TrainConfig))


def _require_known(settings: Iterable[str], options: list[str]) -> None:
    """Refuse names that are no options of dsf-train, or that a cell cannot set."""
    known = [name for name in options if name not in RESERVED]
    for name in settings:
        if name in RESERVED:
            raise UserError(f"a cell cannot set {name}: use {RESERVED[name]}")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else "dsf-train --help lists its options"
            raise UserError(f"setting {name} is no option of dsf-train: {hint}")


def option_names(kind: Any, prefix: str = "") -> list[str]:
    """Names of a config's options on the command line, such as model.key-value-offset."""
    names: list[str] = []
    for name, hint in typing.get_type_hints(kind).items():
        option = prefix + name.replace("_", "-")
        names += option_names(hint, f"{option}.") if dataclasses.is_dataclass(hint) else [option]
    return names
