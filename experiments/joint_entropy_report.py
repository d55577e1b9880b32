"""The section that experiments/joint_entropy.py writes into docs/results.md, and the picture in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from entropy_estimators import ESTIMATORS
from matplotlib import pyplot as plt
from matplotlib.patches import Patch

from dsf.shell.files import replacing
from dsf.shell.generated_section import replace_section, require_section
from dsf.testing.measurement import ROOT

DOCUMENT, PICTURE, RESULTS = (
    ROOT / "docs" / name for name in ("results.md", "joint_entropy.png", "joint_entropy.json")
)
MARKER = "entropy"
ENOUGH_COVERAGE = 0.98
"""Least coverage of the joint states, on the mean over groups, of a size that the section shows."""
Figures = dict[str, Any]
COLOURS = {"sum": "#c9d6e8", "joint": "#2f5d8a"}


def shown_size(found: Figures) -> int:
    """The largest group whose states were seen well enough in every population, as trained; else the smallest."""
    sizes = sorted({line["size"] for line in found["populations"]})
    well = [size for size in sizes if min(line["coverage"] for line in lines_of(found, size)) >= ENOUGH_COVERAGE]
    return max(well, default=sizes[0])


def lines_of(found: Figures, size: int, memory: bool = True) -> list[Figures]:
    """The populations' figures at one size of groups."""
    return [line for line in found["populations"] if (line["size"], line["memory"]) == (size, memory)]


def shown(line: Figures) -> str:
    """One population in words."""
    joint, total = line["joint"]["jackknife"], line["sum"]["jackknife"]
    return f"groups of {line['size']}: joint {joint:.3f} of {total:.3f} bits, coverage {line['coverage']:.3f}"


def section(found: Figures) -> str:
    """All of it."""
    size = shown_size(found)
    return "\n".join([paragraph(found, size), "", *table(found, size), "", trust(found), "", *limits(found, size), ""])


def paragraph(found: Figures, size: int) -> str:
    """What was measured, and what it says of the theorem."""
    lines, train, model = lines_of(found, size), found["train"], found["model"]
    holds = sum(line["gap"] > 2 * line["gap_error"] + abs(line["gap_shuffled"]) for line in lines)
    ratios = [line["ratio"] for line in lines if line["ratio"] is not None]
    added = [line["growth"][-1] / line["growth"][0] for line in lines if line["growth"][0] > 0]
    return (
        f"TSSA, {train['steps']:,} steps of {train['batch_size']} windows on `{found['dataset']['id']}`, width "
        f"{model['width']}, {model['blocks']} blocks, training seed {train['seed']}; spikes of the last token of "
        f"{found['samples']:,} windows (different steps of {found['episodes']:,} episodes), {found['groups']} random "
        f"groups of {size} neurons per population, jackknifed; measured {found['measured']}. In {holds} of "
        f"{len(lines)} populations the joint entropy over the {model['ticks']} ticks lies below the sum of the ticks' "
        f"entropies by more than two standard errors and the shuffled control's difference: it is {min(ratios):.0%} to "
        f"{max(ratios):.0%} of the sum. All {model['ticks']} ticks together say {min(added):.2f} to {max(added):.2f} "
        f"times what the first tick says alone."
    )


def table(found: Figures, size: int) -> list[str]:
    """A row per block and population."""
    forgetful = {(line["block"], line["population"]): line for line in lines_of(found, size, memory=False)}
    rows = [
        "| block | population | firing rate | sum of ticks (bits) | joint (bits) | joint / sum "
        "| sum - joint (standard error) | sum - joint, shuffled | coverage | joint / sum without memory |",
        "|" + "---|" * 10,
    ]
    for line in lines_of(found, size):
        without = forgetful[line["block"], line["population"]]
        rows.append(
            f"| {line['block']} | {line['population']} | {line['rate']:.1%} | {line['sum']['jackknife']:.3f} "
            f"| {line['joint']['jackknife']:.3f} | {_ratio(line)} | {line['gap']:.3f} ({line['gap_error']:.3f}) "
            f"| {line['gap_shuffled']:.3f} | {line['coverage']:.3f} | {_ratio(without)} |"
        )
    return rows


def _ratio(line: Figures) -> str:
    return "silent" if line["ratio"] is None else f"{line['ratio']:.3f}"


def trust(found: Figures) -> str:
    """How the ratio depends on the size of groups, and how far off the estimates are where the truth is known."""
    sizes, parts = sorted({line["size"] for line in found["populations"]}), []
    for size in sizes:
        lines = lines_of(found, size)
        ratios = [line["ratio"] for line in lines if line["ratio"] is not None]
        off = max(abs(line["gap_shuffled"]) for line in lines)
        seen = min(line["coverage"] for line in lines)
        parts.append(
            f"{size} ({min(ratios):.0%} to {max(ratios):.0%} of the sum; least coverage {seen:.3f}; shuffled, at most "
            f"{off:.3f} bits from the truth, 0)"
        )
    return (
        f"Joint entropy by neurons in a group: {'; '.join(parts)}. The table has the largest size at which the states "
        f"that were seen hold {ENOUGH_COVERAGE:.0%} of the probability in every population; more neurons at once are "
        "beyond these samples."
    )


def limits(found: Figures, size: int) -> list[str]:
    """How far the estimates can be trusted, from sources whose entropy is known."""
    rows = [
        f"| source (groups of {size}, {found['samples']:,} samples) | joint, closed form (bits) | "
        + " | ".join(f"{name}, error" for name in ESTIMATORS)
        + " | coverage |",
        "|" + "---|" * (3 + len(ESTIMATORS)),
    ]
    for line in found["sources"]:
        if line["size"] == size:
            truth = line["truth"]["joint"]
            errors = " | ".join(f"{line['joint'][name] - truth:+.4f}" for name in ESTIMATORS)
            rows.append(f"| {line['source']} | {truth:.3f} | {errors} | {line['coverage']:.3f} |")
    return rows


def draw(found: Figures, path: Path) -> None:
    """A panel per block: each population's sum of ticks, the joint entropy in it, and what one tick says."""
    size = shown_size(found)
    blocks = sorted({line["block"] for line in lines_of(found, size)})
    figure, panels = plt.subplots(1, len(blocks), figsize=(3.2 * len(blocks), 2.8), sharey=True, squeeze=False)
    for block, panel in zip(blocks, panels[0]):
        lines = [line for line in lines_of(found, size) if line["block"] == block]
        for place, line in enumerate(lines):
            panel.bar(place, line["sum"]["jackknife"], color=COLOURS["sum"])
            panel.bar(place, line["joint"]["jackknife"], color=COLOURS["joint"])
            panel.hlines(line["growth"][0], place - 0.4, place + 0.4, color="black", linewidth=1.5)
        panel.set_xticks(range(len(lines)), [line["population"] for line in lines])
        panel.set_title(f"block {block}", fontsize=10)
    panels[0, 0].set_ylabel(f"bits, groups of {size} neurons")
    keys = [Patch(color=COLOURS["sum"], label="sum over ticks"), Patch(color=COLOURS["joint"], label="joint")]
    keys.append(Patch(color="black", label="first tick alone (line)"))
    figure.legend(handles=keys, loc="upper center", ncols=3, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.92))
    with replacing(path) as partial:
        figure.savefig(partial, dpi=100, format="png")
    plt.close(figure)


def write(found: Figures) -> None:
    """Section and picture, or neither where the document has no place for the section."""
    require_section(DOCUMENT, MARKER)
    draw(found, PICTURE)
    replace_section(DOCUMENT, MARKER, section(found))
