"""What a trained TSSA network's spikes say together over the ticks, against the sum of what each tick says.

    python experiments/joint_entropy.py RUN [--json FILE]
    python experiments/joint_entropy.py --quick     # seconds; a network that has learnt nothing: it shows that all runs

DSFormer's Theorem 1 (arXiv 2504.03800) motivates temporal attention by H(X^1, ..., X^T) < sum_t H(X^t). This measures
both sides for the inputs, queries, keys and values of every block: the network reads windows of its own dataset, and
the spikes of the last token of each are recorded at every tick.

Whole populations have 2^(width ticks) states, so entropies are those of groups of a few neurons, drawn at random. What
ticks share in a group, they share in the population: sum minus joint of a group is a lower bound on the population's.
Estimates are jackknifed; beside them stand the same groups with each tick shuffled over the samples by itself (the same
marginals without any dependence: sum minus joint is truly 0), and sources with a closed form of the same size.

docs/joint_entropy.json keeps all figures; section "entropy" of docs/results.md and its picture are made from it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import joint_entropy_report
import numpy as np
import numpy.typing as npt
import torch
import tyro
from entropy_estimators import ESTIMATORS, SOURCES, BitArray, coverage, jackknife
from rich.console import Console
from torch import Tensor, nn

from dsf.shell.arrays import Float32Array, Int64Array
from dsf.shell.command import run_command
from dsf.shell.errors import UserError
from dsf.shell.file_values import read_json
from dsf.shell.files import require_writable_parent, write_json
from dsf.testing.measurement import when_and_what
from dsf.testing.training_runs import HOPPER, TINY, UNSCORED, only_dataset, trained
from dsf.train.checkpoint import Checkpoint, load_checkpoint
from dsf.train.data.dataset import AS_RECORDED, OfflineDataset, load_dataset
from dsf.train.models.attention import SpikingAttention
from dsf.train.models.dsformer import DSFormer
from dsf.train.models.neurons import LIF

POPULATIONS = ("inputs", "queries", "keys", "values")
"""Of an attention branch: what it reads, and the three parts of its second layer of neurons."""
MOST_BITS = 16
"""Largest group times ticks: all its states are counted in one array."""
FOLDS = 10
"""Parts of the episodes, each left out once for the standard error: samples of one episode are not independent. Fewer
where there are fewer episodes."""
WINDOWS_AT_A_TIME = 100

Recorded = dict[tuple[int, str], BitArray]
"""Spikes (ticks, samples, neurons) by block and population."""


@dataclass(frozen=True)
class JointEntropyConfig:
    """Entropies over ticks of a trained TSSA network."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Run directory of dsf-train --model.attention tssa; its dataset must be at hand."""
    samples: int = 20_000
    """Windows, whose last tokens are different steps of the dataset."""
    sizes: tuple[int, ...] = (1, 2, 3)
    """Neurons in a group."""
    groups: int = 64
    """Groups of each size in each population."""
    seed: int = 0
    """Draws windows and groups."""
    render: bool = False
    """Only write section and picture again from docs/joint_entropy.json."""
    quick: bool = False
    """A tiny network that has learnt nothing; nothing is written to docs."""
    json: Path | None = None
    """Also write all figures here."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            UserError: naming the option.
        """
        if sum((self.run is not None, self.render, self.quick)) != 1:
            raise UserError("give one of RUN (a run directory of dsf-train), --render and --quick")
        for flag, value in (("--samples", self.samples), ("--groups", self.groups)):
            if value < FOLDS:
                raise UserError(f"{flag} is {value}: it must be at least {FOLDS}")
        if not self.sizes or min(self.sizes) < 1:
            raise UserError(
                f"--sizes is {' '.join(map(str, self.sizes)) or 'empty'}: give numbers of neurons, such as 1 2"
            )
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}: it must be 0 or more")


@dataclass(frozen=True)
class Samples:
    """Windows (samples, context, features) as the codec's integers, their masks, and each one's episode."""

    integers: Float32Array
    mask: npt.NDArray[np.bool_]
    episodes: Int64Array


def require_tssa(checkpoint: Checkpoint, sizes: tuple[int, ...]) -> DSFormer:
    """The trained network.

    Raises:
        UserError: it is another one, or a group has too many states to count.
    """
    checkpoint.require_dsformer()
    model = checkpoint.build_model()
    assert isinstance(model, DSFormer)
    if model.config.attention != "tssa":
        raise UserError(
            f"{checkpoint.path} has attention {model.config.attention}: train one with --model.attention tssa"
        )
    if max(sizes) > model.config.width or max(sizes) * model.ticks > MOST_BITS:
        most = min(model.config.width, MOST_BITS // model.ticks)
        raise UserError(
            f"--sizes has {max(sizes)}: with {model.ticks} ticks, groups of at most {most} neurons are counted"
        )
    return model


def dataset_of(checkpoint: Checkpoint) -> OfflineDataset:
    """What the network was trained on.

    Raises:
        UserError: it is not there, or another one has its name, or the run took only a part of it.
    """
    trained = checkpoint.header["dataset"]
    data = load_dataset(trained["id"])
    if data.content_hash != trained["sha256"]:
        raise UserError(
            f"dataset '{trained['id']}' is not the one that {checkpoint.path} was trained on: collect it again"
        )
    if checkpoint.header["train"]["data"] != asdict(AS_RECORDED):
        raise UserError(
            f"{checkpoint.path} was trained with options of --data: only runs on data as recorded are measured"
        )
    return data


def draw(data: OfflineDataset, model: DSFormer, count: int, generator: np.random.Generator) -> Samples:
    """Windows that end at different steps of the dataset, as training pads them.

    Raises:
        UserError: the dataset has fewer steps.
    """
    if count > data.steps:
        raise UserError(f"--samples is {count}: the dataset has {data.steps} steps; ask for that many or fewer")
    last = np.sort(generator.choice(data.steps, count, replace=False))
    episodes = np.searchsorted(data.starts, last, side="right") - 1
    index = last[:, None] + np.arange(1 - model.config.context, 1)
    first = data.starts[episodes][:, None]
    mask = index >= first
    integers = model.codec.encode(data.tokens[np.maximum(index, first)]).astype(np.float32)
    integers[~mask] = 0.0
    return Samples(integers, mask, episodes)


def folds_of(episodes: Int64Array, generator: np.random.Generator) -> Int64Array:
    """Each sample's fold, (samples,), from its episode: whole episodes share one."""
    _, place = np.unique(episodes, return_inverse=True)
    count = int(place.max()) + 1
    folds: Int64Array = generator.permutation(count)[place] % min(FOLDS, count)
    return folds


@contextmanager
def recording(model: DSFormer, last: Int64Array) -> Iterator[Recorded]:
    """Keep the spikes that the rows ``last`` fire in the forward pass made inside."""
    found: Recorded = {}
    width, handles = model.config.width, []

    def keep(block: int, names: tuple[str, ...], spikes: Tensor) -> None:
        rows = spikes[:, last].to(torch.uint8).numpy()
        for place, name in enumerate(names):
            found[block, name] = rows[:, :, place * width : (place + 1) * width]

    def hook(block: int, names: tuple[str, ...]) -> Any:
        def kept(_module: nn.Module, _inputs: Any, spikes: Tensor) -> None:
            keep(block, names, spikes)

        return kept

    for number, block in enumerate(model.blocks):
        attention = block.attention
        assert isinstance(attention, SpikingAttention)
        handles.append(attention.input_lif.register_forward_hook(hook(number, POPULATIONS[:1])))
        handles.append(attention.qkv_lif.register_forward_hook(hook(number, POPULATIONS[1:])))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def record(model: DSFormer, samples: Samples) -> Recorded:
    """Spikes of every window's last token."""
    parts: list[Recorded] = []
    for start in range(0, len(samples.mask), WINDOWS_AT_A_TIME):
        part = slice(start, start + WINDOWS_AT_A_TIME)
        mask = torch.from_numpy(samples.mask[part])
        last = np.cumsum(samples.mask[part].sum(axis=1)) - 1  # a window's tokens are packed, its last one behind them
        with torch.no_grad(), recording(model, last) as found:
            model(torch.from_numpy(samples.integers[part]), mask)
        parts.append(found)
    return {place: np.concatenate([part[place] for part in parts], axis=1) for place in parts[0]}


def without_memory(model: DSFormer) -> None:
    """Let every membrane forget at once: as a token is the same at every tick, so are then the spikes."""
    for module in model.modules():
        if isinstance(module, LIF):
            module.constants, module.logit_decay = replace(module.constants, decay=0.0), None


def codes_of(spikes: BitArray) -> Int64Array:
    """Each tick's spikes (ticks, samples, neurons) as one number, (ticks, samples)."""
    return spikes.astype(np.int64) @ (1 << np.arange(spikes.shape[2]))


def joint_codes(codes: Int64Array, size: int) -> Int64Array:
    """All ticks of ``size`` neurons as one number, (samples,)."""
    return (codes << (size * np.arange(len(codes)))[:, None]).sum(axis=0)


def fold_counts(codes: Int64Array, folds: Int64Array, states: int) -> Int64Array:
    """How often each state was seen in each fold, (folds, states)."""
    count = int(folds.max()) + 1
    counts: Int64Array = np.bincount(folds * states + codes, minlength=count * states).reshape(count, states)
    return counts


def measure_group(spikes: BitArray, folds: Int64Array, generator: np.random.Generator) -> dict[str, Any]:
    """Entropies of one group's spikes (ticks, samples, neurons), in bits.

    Returns:
        ``joint`` and ``sum`` by estimator; ``ticks``: each tick's own; ``growth``: of the first 1 .. T ticks together;
        ``shuffled``: of all ticks, each shuffled over the samples; ``coverage`` of the joint states; ``without``: joint
        and sum without each fold, (folds, 2).
    """
    ticks, _, size = spikes.shape
    codes, states = codes_of(spikes), 1 << size
    joint = fold_counts(joint_codes(codes, size), folds, states**ticks)
    each = [fold_counts(tick, folds, states) for tick in codes]
    whole, parts = joint.sum(axis=0), [counts.sum(axis=0) for counts in each]
    mixed = joint_codes(np.stack([generator.permutation(tick) for tick in codes]), size)
    without = [
        (jackknife(whole - joint[fold]), sum(jackknife(part - counts[fold]) for part, counts in zip(parts, each)))
        for fold in range(len(joint))
    ]
    growth = [jackknife(np.bincount(joint_codes(codes[:count], size))) for count in range(1, ticks)]
    return {
        "joint": {name: estimate(whole) for name, estimate in ESTIMATORS.items()},
        "sum": {name: sum(map(estimate, parts)) for name, estimate in ESTIMATORS.items()},
        "ticks": [jackknife(part) for part in parts],
        "growth": [*growth, jackknife(whole)],
        "shuffled": jackknife(np.bincount(mixed)),
        "coverage": coverage(whole),
        "without": without,
    }


def measure(
    spikes: BitArray, folds: Int64Array, size: int, groups: int, generator: np.random.Generator
) -> dict[str, Any]:
    """Means over random groups of ``size`` neurons of one population (ticks, samples, neurons); entropies in bits."""
    chosen = [generator.choice(spikes.shape[2], size, replace=False) for _ in range(groups)]
    found = [measure_group(spikes[:, :, group], folds, generator) for group in chosen]
    joint, total = (
        {name: float(np.mean([group[kind][name] for group in found])) for name in ESTIMATORS}
        for kind in ("joint", "sum")
    )
    without = np.mean([group["without"] for group in found], axis=0)  # (folds, joint and sum)
    gap = total["jackknife"] - joint["jackknife"]
    mean = {name: float(np.mean([group[name] for group in found])) for name in ("shuffled", "coverage")}
    return {
        "size": size,
        "rate": float(spikes.mean()),
        "silent_groups": sum(group["sum"]["plug-in"] == 0 for group in found),
        "joint": joint,
        "sum": total,
        "ratio": joint["jackknife"] / total["jackknife"] if total["jackknife"] > 0 else None,
        "gap": gap,
        "gap_error": left_out_error(without[:, 1] - without[:, 0]),
        "gap_shuffled": total["jackknife"] - mean["shuffled"],
        "ticks": np.mean([group["ticks"] for group in found], axis=0).tolist(),
        "growth": np.mean([group["growth"] for group in found], axis=0).tolist(),
        "coverage": mean["coverage"],
        "least_coverage": min(group["coverage"] for group in found),
    }


def left_out_error(estimates: npt.NDArray[np.float64]) -> float:
    """Standard error of an estimate from those without each fold (delete-a-group jackknife)."""
    spread = ((estimates - estimates.mean()) ** 2).sum()
    return math.sqrt((len(estimates) - 1) / len(estimates) * spread)


def known_answers(config: JointEntropyConfig, ticks: int) -> list[dict[str, Any]]:
    """What the estimators say of sources with a closed form, as many samples and groups as are measured."""
    lines = []
    for source in SOURCES:
        for size in config.sizes:
            generator = np.random.default_rng((config.seed, size))
            folds = np.arange(config.samples) % FOLDS
            drawn = (source.draw(ticks, config.samples, size, generator) for _ in range(config.groups))
            found = [measure_group(spikes, folds, generator) for spikes in drawn]
            estimates = {name: float(np.mean([group["joint"][name] for group in found])) for name in ESTIMATORS}
            truth = {"joint": source.joint(size, ticks), "sum": source.sum_of_ticks(size, ticks)}
            lines.append(
                {
                    "source": source.name,
                    "size": size,
                    "truth": truth,
                    "joint": estimates,
                    "sum": float(np.mean([group["sum"]["jackknife"] for group in found])),
                    "coverage": float(np.mean([group["coverage"] for group in found])),
                }
            )
    return lines


def measured(checkpoint: Checkpoint, config: JointEntropyConfig, console: Console) -> dict[str, Any]:
    """All figures of one run."""
    model = require_tssa(checkpoint, config.sizes)
    data, generator = dataset_of(checkpoint), np.random.default_rng(config.seed)
    samples = draw(data, model, config.samples, generator)
    folds = folds_of(samples.episodes, generator)
    lines: list[dict[str, Any]] = []
    for memory in (True, False):
        if not memory:
            without_memory(model)
        console.print(f"recording {config.samples:,} windows, membranes {'as trained' if memory else 'without memory'}")
        for (block, name), spikes in record(model, samples).items():
            place = {"memory": memory, "block": block, "population": name}
            drawn = np.random.default_rng((config.seed, block, POPULATIONS.index(name)))
            lines += [{**place, **measure(spikes, folds, size, config.groups, drawn)} for size in config.sizes]
            console.print(f"block {block}, {name}: {joint_entropy_report.shown(lines[-1])}")
    header = checkpoint.header
    settings = ("batch_size", "learning_rate", "seed")
    return {
        "measured": when_and_what(),
        "dataset": {name: header["dataset"][name] for name in ("id", "sha256")},
        "train": {"steps": header["step"], **{name: header["train"][name] for name in settings}},
        "model": {name: header["model"][name] for name in ("width", "blocks", "ticks", "context", "attention")},
        "samples": config.samples,
        "episodes": len(np.unique(samples.episodes)),
        "folds": int(folds.max()) + 1,
        "groups": config.groups,
        "seed": config.seed,
        "populations": lines,
        "sources": known_answers(config, model.ticks),
    }


def quick_run(directory: Path) -> Checkpoint:
    """A tiny network, trained for a few steps on the one dataset at hand."""
    trained(HOPPER, "--out", str(directory / "run"), *TINY, *UNSCORED, "--steps", "20", "--model.attention", "tssa")
    return load_checkpoint(directory / "run")


def run(config: JointEntropyConfig) -> None:
    """Measure what the configuration names, then write and print it."""
    console = Console(soft_wrap=True, markup=False, highlight=False)
    if config.json is not None:
        require_writable_parent(config.json)
    if config.render:
        found = read_json(joint_entropy_report.RESULTS, "results")
    elif config.quick:
        console.print(
            "quick: a few steps of training, so the network has learnt NOTHING; no figure here means anything"
        )
        with tempfile.TemporaryDirectory() as directory, only_dataset(Path(directory), "hopper-medium", 1_000):
            found = measured(quick_run(Path(directory)), replace(config, samples=1_000, groups=FOLDS), console)
    else:
        assert config.run is not None
        found = measured(load_checkpoint(config.run), config, console)
        write_json(joint_entropy_report.RESULTS, found)
    console.print(joint_entropy_report.section(found))
    if config.json is not None:
        write_json(config.json, found)
    if not config.quick:
        joint_entropy_report.write(found)


def main() -> NoReturn:
    """The command line."""
    run_command(run, JointEntropyConfig, "joint_entropy", "Entropies over the ticks of a trained TSSA network.")


if __name__ == "__main__":
    main()
