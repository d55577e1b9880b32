"""The trials of a search: what was asked, what came of it, and what is asked next.

Everything is in one file of JSON lines, so a search that was stopped goes on with the very trials that it had asked
for. What is asked next depends on the file alone: on the trials that have ended, in their numbers' order, on the seed
and on the trial's own number.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dsf.runtime.search.spec import Choices, Family, Range, SearchSpec, Value
from dsf.shell.errors import UserError
from dsf.shell.file_values import parse_json, read_text
from dsf.shell.typed_values import read_record

RANDOM_TRIALS = 8
"""Of each family, before the sampler (multi-objective TPE, Ozaki et al. 2022) takes the others into account."""
TRIES = 20
"""To find a place that no trial of the family has."""
SIGNIFICANT = 3
"""Digits of a number out of a range."""
State = Literal["asked", "done", "failed"]


@dataclass(frozen=True)
class Trial:
    """A place in a family's space.

    Attributes:
        question: see :meth:`~dsf.runtime.search.spec.SearchSpec.question`.
        family: its name.
        number: from 0, of the family's trials.
        params: value of every option.
        state: asked for, done, or failed.
        score: mean over the training seeds, of a trial that is done; as the next.
        microjoules: per decision.
        reason: why it failed.
    """

    question: str
    family: str
    number: int
    params: dict[str, Any]
    state: State = "asked"
    score: float = math.nan
    microjoules: float = math.nan
    reason: str = ""

    @property
    def place(self) -> str:
        """Equal for equal params."""
        return json.dumps(self.params, sort_keys=True)

    def to_json(self) -> dict[str, Any]:
        """What is known of it."""
        return {name: value for name, value in asdict(self).items() if not (type(value) is float and math.isnan(value))}


@dataclass
class Study:
    """A search and its trials.

    Attributes:
        spec: it.
        path: of the lines.
        trials: by family and number, as they were told last.
        others: lines of other questions: the file has changed since.
    """

    spec: SearchSpec
    path: Path
    trials: dict[tuple[str, int], Trial] = field(default_factory=dict)
    others: int = 0

    @classmethod
    def read(cls, spec: SearchSpec, path: Path) -> Study:
        """A search with the trials that are known of it.

        Raises:
            UserError: a line is none of ours.
        """
        study = cls(spec, path)
        questions = {name: spec.question(name) for name in spec.families}
        try:
            text = read_text(path, "trials")
        except FileNotFoundError:
            return study
        whole = text[: text.rfind("\n") + 1]  # what a power cut has left of a line is none
        for number, row in enumerate(whole.split("\n"), 1):
            if not row.strip():
                continue
            where = f"{path}, line {number}"
            trial = read_record(Trial, parse_json(row, where), where, "remove it")
            if questions.get(trial.family) == trial.question:
                trial = replace(trial, params={name: trial.params[name] for name in spec.families[trial.family].space})
                study.trials[trial.family, trial.number] = trial
            else:
                study.others += 1
        return study

    def tell(self, trial: Trial) -> None:
        """Put down a trial, or what came of it.

        Raises:
            OSError: the file cannot be written.
        """
        self.trials[trial.family, trial.number] = trial
        with self.path.open("ab+") as file:
            size = file.seek(0, os.SEEK_END)
            content = os.pread(file.fileno(), size, 0)
            if content and not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)
            file.write((json.dumps(trial.to_json(), sort_keys=True) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())

    def of_family(self, family: str) -> list[Trial]:
        """In their numbers' order."""
        return [self.trials[key] for key in sorted(self.trials) if key[0] == family]

    def done(self, families: Mapping[str, Family]) -> list[Trial]:
        """Trials of some families that have figures."""
        return [trial for name in families for trial in self.of_family(name) if trial.state == "done"]

    def pending(self) -> list[Trial]:
        """Asked for, and not told."""
        return [trial for name in self.spec.families for trial in self.of_family(name) if trial.state == "asked"]

    def again(self) -> None:
        """Ask once more for trials that have failed."""
        for trial in [trial for trial in self.trials.values() if trial.state == "failed"]:
            self.tell(replace(trial, state="asked", reason=""))

    def left(self) -> int:
        """Trials that are still to be asked for."""
        return sum(max(0, family.trials - len(self.of_family(name))) for name, family in self.spec.families.items())

    def ask(self) -> list[Trial]:
        """The next batch, of the families in turn; none is left where it is empty."""
        found: list[Trial] = []
        while len(found) < self.spec.batch:
            counts = {
                name: len(self.of_family(name)) + sum(one.family == name for one in found)
                for name in self.spec.families
            }
            open_ones = [name for name, family in self.spec.families.items() if counts[name] < family.trials]
            if not open_ones:
                break
            name = min(open_ones, key=lambda name: counts[name])
            known = [*self.of_family(name), *(one for one in found if one.family == name)]
            params = suggest(self.spec, name, known)
            found.append(Trial(self.spec.question(name), name, counts[name], params))
        for trial in found:
            self.tell(trial)
        return found


def suggest(spec: SearchSpec, family: str, known: Sequence[Trial]) -> dict[str, Value]:
    """A place for a family's next trial, one that none of those known has if it can be found.

    Args:
        spec: the search.
        family: its name.
        known: all trials of it; those that have figures are learned from.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {name: _distribution(values) for name, values in spec.families[family].space.items()}
    taken, params = {trial.place for trial in known}, {}
    for attempt in range(TRIES):
        digest = hashlib.sha256(json.dumps([spec.seed, family, len(known), attempt]).encode()).digest()
        sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=int.from_bytes(digest[:4], "big"))
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        for trial in known:
            if trial.state == "done":
                figures = [trial.score, math.log10(trial.microjoules)]
                told = optuna.trial.create_trial(params=trial.params, distributions=space, values=figures)
                study.add_trial(told)
        asked = study.ask(space).params
        params = {name: _rounded(value, spec.families[family].space[name]) for name, value in asked.items()}
        if json.dumps(params, sort_keys=True) not in taken:
            break
    return dict(params)


def _rounded(value: Value, values: Choices | Range) -> Value:
    """A number of a range, as a person would write it."""
    if isinstance(values, Choices) or not isinstance(value, float):
        return value
    return min(max(float(f"{value:.{SIGNIFICANT}g}"), values.low), values.high)


def _distribution(values: Any) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(values, Choices):
        choices: list[Any] = [*values.values]
        return CategoricalDistribution(choices)
    if values.whole:
        return IntDistribution(values.low, values.high, values.log, values.step or 1)
    return FloatDistribution(values.low, values.high, values.log, values.step)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """The only search with these trials.

    Raises:
        UserError: another one is at work.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another dsf-bench search is at work on {path}: wait for it, or give another --out"
            ) from None
        yield
