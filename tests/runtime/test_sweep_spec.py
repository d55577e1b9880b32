"""Sweep files: what they multiply out to, what is refused and how, and which cells are the same."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from shutil import ignore_patterns
from typing import Any

import pytest

from dsf.runtime import bench_cli
from dsf.runtime.sweeps import identity
from dsf.runtime.sweeps.command import SweepConfig, require_possible, settle
from dsf.runtime.sweeps.energy import dense_energy
from dsf.runtime.sweeps.file import read_sweep, shipped_sweeps, sweep_path
from dsf.runtime.sweeps.identity import INTEGERS, TRAINING, code_version, folder_code, resolve_cell
from dsf.runtime.sweeps.jobs import Job, JobOrder, failures_in, plan, write_failure
from dsf.runtime.sweeps.local import Outcome, gpu_places
from dsf.runtime.sweeps.meaning import meaning
from dsf.runtime.sweeps.store import append_once, read_lines
from dsf.runtime.sweeps.table import NOT_RUN, build_table, markdown
from dsf.shell.errors import UserError
from dsf.tasks import get_task
from dsf.testing.command_line import assert_refused
from dsf.testing.training_runs import run_here
from dsf.train.config.training import ModelConfig, to_json

ROOT = Path(__file__).resolve().parents[2]
GOOD = """
name: good
datasets: {hopper-medium-v2: {}, hopper-expert-v2: {learning-rate: 0.5}}
models:
  a: {settings: {model.attention: tssa}}
  b: {settings: {model.attention: pssa}, export: {bits: 4}}
seeds: [0, 1]
settings: {learning-rate: 0.1, model.width: 8}
axes: {model.ticks: [2, 4]}
include:
  - {dataset: hopper-medium-v2, model: a, model.ticks: 8, settings: {steps: 7}}
exclude:
  - {model: b, model.ticks: 4}
  - {dataset: hopper-expert-v2, seed: 1}
"""


def write(tmp_path: Path, text: str = GOOD) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    return path


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_here(bench_cli.main, "dsf-bench", *map(str, arguments))


def test_axes_are_multiplied_out(tmp_path: Path) -> None:
    cells = read_sweep(write(tmp_path)).cells()
    # per dataset and seed: a at 2 and 4 ticks, b at 2; hopper-expert has seed 0 only; plus the included one's two seeds
    assert len(cells) == len(set(cells)) == 3 * 3 + 2
    settings = {cell.label: dict(cell.settings) for cell in cells}
    assert settings["hopper-medium-v2 a model.ticks=8 seed 1"]["steps"] == 7
    assert settings["hopper-expert-v2 a model.ticks=2 seed 0"]["learning-rate"] == 0.5
    assert settings["hopper-medium-v2 b model.ticks=2 seed 0"] == {
        "learning-rate": 0.1,
        "model.attention": "pssa",
        "model.ticks": 2,
        "model.width": 8,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("found", "written", "words"),
    [
        ("name: good", "nam: good", ("nam is no field", "use name, datasets")),
        ("seeds: [0, 1]", "seeds: [0, 0]", ("seeds", "once")),
        ("seeds: [0, 1]", "seeds: 3", ("seeds is 3", "a list, such as [0, 1]")),
        ("model.width: 8", "model.widht: 8", ("setting model.widht", "did you mean model.width?")),
        ("model.width: 8", "model.width: eight", ("a model.ticks=2 seed 0", "width")),
        ("model.width: 8", "eval-episodes: 8", ("eval-episodes", "use evaluation.episodes")),
        ("learning-rate: 0.1", "learning-rate: -0.1", ("--learning-rate is -0.1", "positive")),
        ("{bits: 4}", "{bitts: 4}", ("b model.ticks=2", "bitts")),
        ("model.ticks: 8", "ticks: 8", ("include[0].ticks", "use dataset, model, seed, model.ticks, settings")),
        ("model: a, model.ticks: 8", "model: z", ("include[0].model is 'z'", "use one of a, b")),
        ("axes: {", "table: {columns: rows}\naxes: {", ("table.columns is rows", "use one of dataset, model")),
        ("axes: {", "table: {baseline: z}\naxes: {", ("table.baseline is z", "use one of a, b")),
        ("seeds: [0, 1]", "evaluation: {episodes: 0}", ("evaluation.episodes is 0", "at least 1")),
        ("{settings: {model.attention: tssa}}", "{energy: much}", ("models.a.energy is 'much'", "use one of spiking")),
        (
            "{settings: {model.attention: tssa}}",
            "{precision: int4}",
            ("models.a.precision is 'int4'", "use one of fp32, int8"),
        ),
        ("export: {bits: 4}", "export: {bits: 4}, precision: int8", ("models.b has both export and precision",)),
        (
            "export: {bits: 4}",
            "precision: int8",
            ("b model.ticks=2", "precision int8 requires a rival", "export: {bits: 8}"),
        ),
        (
            "settings: {model.attention: tssa}",
            "settings: {policy: dt, init: runs/dt, qat-steps: 9}",
            (
                "a model.ticks=2",
                "policy dt with qat-steps is scored by its integers of 8 bits alone",
                "precision: trained",
            ),
        ),
        (
            "{settings: {model.attention: tssa}}",
            "{settings: {policy: dt, init: runs/dt, qat-steps: 9, bits: 4}, precision: int8}",
            ("a model.ticks=2", "its integers of 4 bits alone", "write precision: trained"),
        ),
        (
            "{settings: {model.attention: tssa}}",
            "{settings: {policy: dt}, precision: trained}",
            ("a model.ticks=2", "precision trained requires qat-steps", "precision: int8"),
        ),
        ("export: {bits: 4}", "start: c", ("models.b.start is 'c'", "use one of a, b")),
        ("export: {bits: 4}", "start: b", ("models.b.start goes round in a circle (b -> b)",)),
        (
            "model.attention: pssa}, export: {bits: 4}",
            "init: runs/x}, start: a",
            ("models.b has both start and the setting init",),
        ),
        (
            "export: {bits: 4}",
            "start: a",
            ("b model.ticks=2", "model.attention is pssa, and it starts from a with tssa", "cannot change"),
        ),
        ("pssa}, export: {bits: 4}", "tssa}, start: a, takes: [7, {}]", ("models.b.takes is {}", "must be text")),
        ("axes: {", "counts: {fetch: row}\naxes: {", ("counts.fetch is 'row'", "use one of event, token")),
        ("export: {bits: 4}", "energy: layers", ("energy layers requires policy fcnet", "not dsformer")),
        ("export: {bits: 4}", "export: {out: x}", ("models.b.export cannot set out", "drop it")),
        ("axes: {", "table: {baseline: [a]}\naxes: {", ("table.baseline is ['a']", "give one name")),
        ("model: a, model.ticks: 8", "model: [a]", ("include[0].model is ['a']", "give one value")),
        ("{model: b, model.ticks: 4}", "{model: psa}", ("exclude[0].model is 'psa'", "use one of a, b")),
        ("learning-rate: 0.1", "eval-targets: [.nan]", ("--eval-targets is nan", "finite")),
        ("name: good", "name: [", ("is no YAML",)),
    ],
)
def test_mistakes_name_file_field_and_remedy(tmp_path: Path, found: str, written: str, words: tuple[str, ...]) -> None:
    path = write(tmp_path, GOOD.replace(found, written))
    assert_refused(bench("sweep", path, "--dry-run"), str(path), *words)


def test_integers_depend_on_the_code_that_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they only give the energy; the training they share does not."""
    cells = {cell.model: cell for cell in read_sweep(sweep_path("hopper_rivals")).cells()}
    models = {name: resolve_cell(cells[name]) for name in ("bc", "pssa", "pssa-int8")}
    keys = []
    for version in ("old", "new"):
        monkeypatch.setattr(identity, "code_version", {"train": "t", "export": version}.get)
        keys.append({name: (found.key("data"), found.training_key("data")) for name, found in models.items()})
    for name in models:
        (old, training), (new, same) = keys[0][name], keys[1][name]
        assert training == same and (old == new) == (name == "bc")


def test_a_failure_says_why_it_failed_last(tmp_path: Path) -> None:
    """A process that died leaves no reason: an earlier try's is not its own. Nor is one of other code."""
    (planned,) = plan([resolve_cell(read_sweep(sweep_path("hopper_rivals")).cells()[0])])
    job = Job(tmp_path / "job", (planned,), threads=1)
    job.write()
    write_failure(job.directory, planned.facts(), "the disk was full")
    (said,) = settle(Outcome(job, -9), tmp_path / "results.jsonl")
    assert "its process ended with -9" in said
    assert list(failures_in(tmp_path, [planned.resolved]).values()) == [said.partition("seed 0: ")[2]]
    write_failure(job.directory, {**planned.facts(), "code": "another"}, "a mistake since mended")
    assert failures_in(tmp_path, [planned.resolved]) == {}


def test_a_worker_reads_the_order_that_a_sweep_wrote_and_no_other_version(tmp_path: Path) -> None:
    (planned,) = plan([resolve_cell(read_sweep(sweep_path("hopper_rivals")).cells()[0])])
    job = Job(tmp_path / "job", (planned,), threads=3)
    path = job.write()
    assert JobOrder.read(path) == job.order() and job.order().threads == 3
    path.write_text(path.read_text().replace('"version": 2', '"version": 1'))
    worker = [sys.executable, "-m", "dsf.runtime.sweeps.worker", str(path)]
    found = subprocess.run(worker, capture_output=True, text=True, timeout=120)
    assert found.returncode == 2 and found.stderr.count("\n") == 1, found.stderr
    assert "is a job of version 1, and this dsf reads version 2" in found.stderr


@pytest.mark.slow
def test_options_that_cannot_work_are_one_line(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert_refused(bench("sweep", "no_such"), "there is no sweep no_such", "hopper_rivals")
    assert_refused(bench("sweep", path, "--workers", "0"), "--workers is 0")
    assert_refused(bench("sweep", path, "--ray-address", "auto"), "--launcher ray")
    for minutes in ("0", "-1", "inf", "nan"):
        assert_refused(bench("sweep", path, "--minutes", minutes), f"--minutes is {float(minutes)}", "positive")
    assert_refused(bench("sweep", path, "--minutes", "3", "--launcher", "ray"), "--minutes requires --launcher local")
    assert_refused(bench("table", "other", "--spec", path), "is the sweep good, not other")
    assert_refused(bench("table", "good", "--spec", path, "--results", tmp_path / "none"), "no results at", "dsf-bench")


@pytest.mark.slow
def test_cells_are_the_same_where_nothing_that_matters_differs(tmp_path: Path) -> None:
    path = write(tmp_path)
    first, second = (resolve_cell(read_sweep(path).cells()[index]) for index in (0, 1))
    assert first.key("data") != second.key("data")
    assert first.key("data") != first.key("other data") and first.place == resolve_cell(first.cell).place
    path.write_text(GOOD.replace("learning-rate: 0.1", "learning-rate: 0.1, checkpoint-every: 5, weight-decay: 1.0e-4"))
    again = resolve_cell(read_sweep(path).cells()[0])
    assert again.key("data") == first.key("data")  # a default that is spelled out, and what no result depends on
    integers = [cell for cell in map(resolve_cell, read_sweep(path).cells()) if cell.export]
    assert integers[0].export == ("--bits", "4")


@pytest.mark.slow
def test_comments_and_docstrings_are_no_other_code() -> None:
    plain = "def f(x):\n    return x + 1\n"
    told = '"""Module."""\n\ndef f(x):  # why\n    """Add one."""\n\n    return (x + 1)\n'
    assert meaning(plain) == meaning(told) != meaning(plain.replace("1", "2"))
    assert len({code_version(kind) for kind in ("train", "export", "cql")}) == 3


SPOKEN = """
def decay(ticks, steps):
    if ticks < 1:
        raise UserError(f"ticks is {ticks}: it must be at least 1")
    if steps < 0:
        reason = "negative"
        message = f"steps is {reason}: " + "use more"
        raise CommandFailed(message) from None
    assert ticks < 99, "too many"
    console.print("decays", style="bold")
    warnings.warn("slow", stacklevel=2)
    require(ticks > 0, "ticks", f"has {ticks}")
    return {"linear": 0.5}["linear"] * ticks
"""


@pytest.mark.parametrize(
    ("found", "written"),
    [
        ("ticks is {ticks}: it must be at least 1", "--ticks is {ticks} in {steps}: use 1"),
        ('"negative"', '"below 0"'),
        ("steps is {reason}: ", "there are {reason} steps, "),
        ('"use more"', '"use 1"'),
        ("too many", "more than 98 ticks"),
        ('"decays"', 'f"decays over {steps}"'),
        ('"slow"', '"this is slow"'),
        ("has {ticks}", "is not above 0"),
    ],
)
def test_rewording_a_message_is_no_other_code(found: str, written: str) -> None:
    assert SPOKEN.count(found) == 1 and meaning(SPOKEN) == meaning(SPOKEN.replace(found, written))


@pytest.mark.parametrize(
    ("found", "written"),
    [
        ("ticks < 1", "ticks < 2"),
        ("UserError", "ValueError"),
        ("ticks < 99", "ticks < 98"),
        ("0.5", "0.25"),
        ('"linear": 0.5', '"linear": 0.5, "other": 1'),
        ('["linear"]', '["other"]'),
    ],
)
def test_numbers_names_and_keys_are_other_code(found: str, written: str) -> None:
    assert found in SPOKEN and meaning(SPOKEN) != meaning(SPOKEN.replace(found, written))


def test_a_text_that_computes_counts_wherever_it_is_used_too() -> None:
    told = 'def f(x):\n    name = "loss"\n    print(name)\n    return x[name]\n'
    assert meaning(told) != meaning(told.replace('"loss"', '"return"'))
    assert meaning(told) == meaning(told.replace("print(name)", 'print(f"the {name}")'))
    kept = 'def f():\n    class A:\n        kind = "a"\n    return A\n'
    assert meaning(kept) != meaning(kept.replace('"a"', '"b"'))


def copied(folder: str, tmp_path: Path) -> Path:
    return shutil.copytree(ROOT / folder, tmp_path / folder.replace("/", "-"), ignore=ignore_patterns("__pycache__"))


@pytest.mark.slow
def test_a_reworded_module_keeps_its_folder_and_a_changed_number_does_not(tmp_path: Path) -> None:
    folder = copied("train/quantization", tmp_path)
    code, module = folder_code(folder), folder / "codec.py"
    text = module.read_text()
    reworded = re.sub(r'raise (\w+)\(f?"[^"]*"\)', r'raise \1("said in another way")', text)
    assert reworded != text
    module.write_text(reworded)
    assert folder_code(folder) == code == folder_code(ROOT / "train/quantization")
    module.write_text(text + "\nMORE = 1\n")
    more = folder_code(folder)
    module.write_text(text + "\nMORE = 2\n")
    assert len({code, more, folder_code(folder)}) == 3
    module.write_text(text)
    module.rename(folder / "renamed.py")
    assert folder_code(folder) != code


def test_the_kernels_text_is_their_code(tmp_path: Path) -> None:
    folder = copied("runtime/kernels", tmp_path)
    code = folder_code(folder)
    (folder / "spike_sums.h").write_text((folder / "spike_sums.h").read_text() + "\n#define MORE 1\n")
    assert folder_code(folder) != code


def test_a_folder_without_code_fails(tmp_path: Path) -> None:
    folder = copied("runtime/kernels", tmp_path)
    for path in folder.glob("*.[ch]"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"depend on the code in .*runtime-kernels, and there is none"):
        folder_code(folder)
    (folder / "__init__.py").unlink()
    for path in (folder, tmp_path / "not there"):
        with pytest.raises(FileNotFoundError, match="and there is none"):
            folder_code(path)
    folder = copied("train/data", tmp_path)
    folder_code(folder, ("collect.py",))
    with pytest.raises(FileNotFoundError, match=r"left out of the hash .*collects\.py"):
        folder_code(folder, ("collects.py",))


@pytest.mark.slow
def test_a_package_that_is_not_there_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(INTEGERS, "dsf.export.gone", ())
    with pytest.raises(FileNotFoundError, match=r"depend on dsf\.export\.gone"):
        code_version.__wrapped__("export")
    assert code_version.__wrapped__("train") == code_version("train")


def module_path(name: str) -> Path | None:
    """Path of a module; None where the name is that of something in a module."""
    try:
        spec = find_spec(name)
    except ModuleNotFoundError:
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin)


def imported_from(start: str) -> set[str]:
    """Modules of dsf that a module needs, at the top or in a function, with those that these need; the ground room
    apart."""
    needed, todo = set(), [start]
    while todo:
        name = todo.pop()
        path = None if name in needed or name.startswith("dsf.shell") else module_path(name)
        if path is None:
            continue
        needed.add(name)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dsf."):
                todo += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return needed


NAMES_AND_FILES = {
    "dsf.tasks.maze_picture": "draws",
    "dsf.train.data.maze_sets": "names datasets",
    "dsf.train.data.minari_store": "opens datasets, whose bytes the content hash covers",
    "dsf.train.data.names": "names datasets",
    "dsf.train.data.recipes": "names datasets",
    "dsf.train.data.registry": "names datasets",
    "dsf.train.event_file": "writes what TensorBoard reads",
    "dsf.train.observer": "hears how a training goes on",
}
"""What a training imports and its result does not depend on."""


@pytest.mark.parametrize(
    ("start", "room", "hashed"),
    [
        ("dsf.train.trainer", "", TRAINING),
        ("dsf.export.conversion.fold", "", TRAINING | INTEGERS),
        ("dsf.export.conversion.quantize", "dsf.export.conversion", TRAINING | INTEGERS),
        ("dsf.runtime.engines.fast_engine", "dsf.runtime", INTEGERS),
    ],
)
def test_what_computes_a_result_is_hashed(start: str, room: str, hashed: dict[str, tuple[str, ...]]) -> None:
    needed = {name for name in imported_from(start) if name.startswith(room)}
    assert start in needed
    for name in needed - NAMES_AND_FILES.keys():
        packages = [package for package in hashed if f"{name}.".startswith(f"{package}.")]
        assert packages, f"{name} is not hashed"
        inside = name.removeprefix(packages[0]).lstrip(".").replace(".", "/")
        assert not {inside, f"{inside}.py"} & set(hashed[packages[0]]), f"{name} is left out of the hash"


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_sweeps())
def test_shipped_sweeps_fit_the_parser(name: str) -> None:
    spec = read_sweep(sweep_path(name))
    assert spec.name == name and spec.title
    first = spec.cells()[0]
    different = {  # a seed and a dataset change one word each
        (cell.model, cell.axes, cell.dataset if cell.model == first.model else ""): cell for cell in spec.cells()
    }
    assert all(resolve_cell(cell).place for cell in different.values())


@pytest.mark.slow
def test_settings_younger_than_sweeps_leave_earlier_places_as_they_are() -> None:
    cells = read_sweep(sweep_path("hopper_rivals")).cells()
    policies = {cell.model: resolve_cell(cell).training for cell in cells if cell.model in ("pssa", "dt")}
    assert not {"policy", "rival"} & policies["pssa"].keys()
    assert policies["dt"]["policy"] == "dt" and "rival" not in policies["dt"]
    (wide,) = [resolve_cell(cell) for cell in cells if cell.model == "dt-wide"][:1]
    assert wide.training["rival"] == {"width": 64, "mlp_hidden": 256}  # what others have is not in its place


def test_int8_is_another_result_of_the_same_training() -> None:
    cells = read_sweep(sweep_path("hopper_rivals")).cells()[:10]
    floats, integers = (resolve_cell(cell) for cell in cells if cell.model in ("dt", "dt-int8"))
    assert floats.training_key("data") == integers.training_key("data")
    assert floats.key("data") != integers.key("data") and floats.place != integers.place
    assert floats.scored == [None, "decision-transformer"]  # as before there were precisions


def test_cql_takes_the_settings_that_it_has(tmp_path: Path) -> None:
    shared = "{learning-rate: 0.1, model.width: 8, steps: 9, data.top-percent: 10, conservative-weight: 2.0}"
    text = GOOD.replace("model.attention: tssa", "policy: cql").replace("{learning-rate: 0.1, model.width: 8}", shared)
    path = write(tmp_path, text.replace("model: b, ", "").replace("conservative-weight", "conservative-wait"))
    assert_refused(bench("sweep", path, "--dry-run"), "conservative-wait is no option", "conservative-weight?")
    path.write_text(text)
    cell = resolve_cell(read_sweep(path).cells()[0])
    asked = "--steps 9 --data.top-percent 10 --conservative-weight 2.0 --seed 0 --eval-episodes 20 --eval-seed 8000"
    assert sorted(cell.arguments) == sorted(["cql", "hopper-medium-v2", *asked.split()])
    assert cell.training["conservative_weight"] == 2.0 and "d3rlpy" in cell.software
    for more in (", export: {bits: 4}", ", precision: int8"):
        path.write_text(text.replace("policy: cql}", f"policy: cql}}{more}"))
        with pytest.raises(UserError, match="policy cql has neither"):
            resolve_cell(read_sweep(path).cells()[0])


def test_the_tables_have_their_cells() -> None:
    sizes = {name: len(read_sweep(sweep_path(name)).cells()) for name in shipped_sweeps()}
    assert sizes == {
        "hopper_delayed": 3 * 2 * 3,
        "hopper_rivals": 3 * 11 * 3,
        "paper_models": 4,
        "room_to_lose": 2 * 10 * 2,
        "table1_longer": 3 * 6 * 3,
        "table1_mujoco": (9 * 10 + 3 * 2) * 3,
        "table2_adroit": 12 * 9 * 3,
        "table3_ablations": 3 * 9 * 2,
        "table4_context": 3 * 4 * 2,
        "table5_delayed_reward": 3 * 3 * 3,
    }


def line(cell: Any, score: float, **more: Any) -> dict[str, Any]:
    values = {"key": f"{cell.place}{more}", "place": cell.place, "returns": [1.0], "score": score, "steps": 5}
    values |= {
        "seed": cell.cell.seed,
        "dataset": cell.cell.dataset,
        "target_return": 3.0,
        "energy": {"not_priced": "x"},
    }
    return {
        **values,
        "dataset_id": "d",
        "dataset_sha256": "h",
        "code": "c",
        "export": None,
        "precision": "fp32",
        **more,
    }


@pytest.mark.slow
def test_a_table_says_what_has_not_run(tmp_path: Path) -> None:
    spec = read_sweep(write(tmp_path, GOOD.replace("axes: {", "table: {baseline: b}\naxes: {")))
    cells = [resolve_cell(cell) for cell in spec.cells()]
    at = {cell.cell.label: cell for cell in cells}
    lines = [line(at[f"hopper-medium-v2 a model.ticks=2 seed {seed}"], score) for seed, score in ((0, 10.0), (1, 20.0))]
    lines += [line(at["hopper-medium-v2 b model.ticks=2 seed 1"], 15.0, export={"bits": 4})]
    lines += [line(at["hopper-medium-v2 b model.ticks=2 seed 1"], 16.0, export={"bits": 4}, code="newer")]
    table = build_table(spec, cells, lines, {at["hopper-expert-v2 a model.ticks=4 seed 0"].place: "it broke"})
    text = markdown(table)
    rows = {row.split(" | ")[0].strip("| "): row for row in text.splitlines() if row.startswith("|")}
    assert "| 15.0 [10.0, 20.0] (10.0, 20.0) | not run | not run | not run |" in rows["a, model.ticks 2"]
    assert "16.0 (one seed; 1 of 2 seeds)" in rows["b, model.ticks 2"]  # the last result of a place counts
    whole = [*lines, line(at["hopper-medium-v2 b model.ticks=2 seed 0"], 14.0, export={"bits": 4})]
    compared = markdown(build_table(spec, cells, whole, {}))
    assert "| 15.0 [10.0, 20.0] (10.0, 20.0) | not run | not run | 0.50 [" in compared  # half a baseline is none
    there = at["hopper-medium-v2 b model.ticks=2 seed 1"]
    mine = line(there, 17.0, code=there.code)
    assert "17.0 (one seed" in markdown(build_table(spec, cells, [mine, *lines], {}))  # but this code's come first
    assert "| not run | failed |" in rows["a, model.ticks 4"] and "Failed: a, model.ticks 4: it broke." in text
    assert rows["a, model.ticks 8"].endswith(f"| {NOT_RUN} | - | {NOT_RUN} | - |")  # no row of the baseline there


@pytest.mark.slow
def test_products_of_two_precisions_are_warned_of_in_one_row_and_events_have_a_column(tmp_path: Path) -> None:
    spec = read_sweep(write(tmp_path, GOOD))
    at = {cell.cell.label: cell for cell in (resolve_cell(cell) for cell in spec.cells())}
    priced = {"microjoules": {"int8": {"int8_45nm": 0.5}}, "how": "counted spikes, stream mode"}
    ours = line(at["hopper-medium-v2 a model.ticks=2 seed 0"], 10.0, precision="bf16", energy=priced)
    rival = line(at["hopper-medium-v2 b model.ticks=2 seed 0"], 11.0)
    text = markdown(build_table(spec, [*at.values()], [ours, rival], {}))
    assert "products are mixed" not in text and "synaptic events" not in text
    counted = {**priced, "events_per_decision": 1234.4}
    other = line(at["hopper-medium-v2 a model.ticks=2 seed 1"], 12.0, energy=counted)
    text = markdown(build_table(spec, [*at.values()], [ours, rival, other], {}))
    assert "bf16 and with fp32 products are mixed in one row" in text
    assert "| synaptic events | how |" in text and "| 1,234 | counted spikes, stream mode |" in text


def test_results_are_appended_once_and_whole(tmp_path: Path) -> None:
    store = tmp_path / "deep" / "results.jsonl"
    one = {"key": "1", "place": "p", "returns": [], "seed": 0, "score": 1.0, "dataset": "d", "energy": {}, "code": "c"}
    assert append_once(store, one) and not append_once(store, one)
    with store.open("a") as file:
        file.write('{"key": "2", "pl')
    assert append_once(store, {**one, "key": "3"})
    assert [found["key"] for found in read_lines(store)] == ["1", "3"]
    store.write_text("[]\n")
    with pytest.raises(UserError, match="line 1 is no result"):
        read_lines(store)


def test_a_decision_transformer_is_priced_by_its_sizes() -> None:
    header = {"policy": "dt", "model": to_json(ModelConfig()), "rival": {"width": 96, "mlp_hidden": 358}}
    found = dense_energy("decision-transformer", header, get_task("hopper"))
    figures, cached = found["microjoules"], found["cached_microjoules"]
    # 60 tokens x 3 blocks x (4 D^2 + 2 D H), 20 embeddings, the head, and causal products; 4.6 pJ each
    macs = 60 * 3 * (4 * 96**2 + 2 * 96 * 358) + 20 * 15 * 96 + 3 * 96 + 3 * 2 * 96 * (60 * 61 // 2)
    assert figures["fp32"]["paper_45nm"] == pytest.approx(macs * 4.6e-6, rel=1e-5)
    assert cached["fp32"]["paper_45nm"] < figures["fp32"]["paper_45nm"]
    assert figures["int8"]["int8_45nm"] < figures["fp32"]["int8_45nm"]
    header["policy"] = "bc"
    assert "prices dt, and this is bc" in dense_energy("decision-transformer", header, get_task("hopper"))["not_priced"]
    cloning = dense_energy("mlp", {"policy": "bc", "rival": {"width": 256}}, get_task("hopper"))["microjoules"]
    assert cloning["fp32"]["paper_45nm"] == pytest.approx((11 * 256 + 256**2 + 256 * 3) * 4.6e-6, rel=1e-5)


def test_small_trainings_share_gpus_and_large_ones_take_several() -> None:
    two = ["0", "1"]
    assert gpu_places(two, 0.25) == ["0", "1"] * 4 and gpu_places(two, 0.1) == ["0", "1"] * 10
    assert gpu_places(two, 0.3) == ["0", "1"] * 3  # 0.9 of each: a fourth would not fit
    assert gpu_places(two, 1.0) == two and gpu_places(two, 2.0) == ["0,1"] and gpu_places(["0"], 2.0) == []


@pytest.mark.parametrize(
    ("share", "said"), [(1.5, "a share up to 1, or whole GPUs"), (2.0, "this machine shows 1 GPUs")]
)
def test_gpus_that_no_cell_can_have_are_refused(share: float, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UserError, match=re.escape(said)):
        require_possible(SweepConfig("hopper_rivals", gpus_per_cell=share))


def test_versions_of_the_code_are_mixed_only_where_results_depend_on_the_same_code(tmp_path: Path) -> None:
    """A spiking model's line depends on more code than a rival's, whether or not its integers are scored."""
    spec = read_sweep(write(tmp_path, GOOD))
    at = {cell.cell.label: cell for cell in (resolve_cell(cell) for cell in spec.cells())}
    spiking = {"code": "integers", "energy_rule": "spiking"}
    lines = [
        line(at["hopper-medium-v2 a model.ticks=2 seed 0"], 10.0, **spiking),
        line(at["hopper-medium-v2 b model.ticks=2 seed 0"], 11.0, **spiking, export={"bits": 4}),
        line(at["hopper-medium-v2 a model.ticks=4 seed 0"], 12.0, code="training", energy_rule="mlp"),
        line(at["hopper-medium-v2 a model.ticks=4 seed 1"], 12.0, code="its own", settings={"policy": "cql"}),
    ]
    assert "are mixed" not in markdown(build_table(spec, [*at.values()], lines, {}))
    older = line(at["hopper-medium-v2 a model.ticks=2 seed 1"], 13.0, code="older", energy_rule="spiking")
    assert "different versions of the code are mixed" in markdown(
        build_table(spec, [*at.values()], [*lines, older], {})
    )
