"""The section that experiments/maze_on_cores.py writes into docs/strl.md, and the picture in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import matplotlib

matplotlib.use("agg")

import numpy as np
import numpy.typing as npt
from matplotlib import pyplot as plt
from strl_tables import spread

import dsf.tasks.maze_env  # noqa: F401  # registers the environment
from dsf.export.network.file import read_network
from dsf.export.network.network import Network
from dsf.runtime.engines.parity import Spikes
from dsf.runtime.engines.spike_file import EPISODE_STARTS
from dsf.runtime.loop.record import read_recording
from dsf.runtime.loop.tape import TapedEpisode
from dsf.runtime.report.figures import draw_spikes
from dsf.shell.files import replacing
from dsf.shell.generated_section import replace_section
from dsf.shell.units import MICROJOULE
from dsf.tasks.maze_picture import Picture
from dsf.testing.measurement import ROOT

DOCUMENT, PICTURE = ROOT / "docs" / "strl.md", ROOT / "docs" / "maze_solved.png"
MARKER = "maze-on-cores"
PRESETS = ("paper_45nm", "int8_45nm", "loihi2_derived")
"""What dsf-sim-run prices by default."""
NOT_RUN = "not run"
Line = dict[str, Any]


def read_lines(results: Path) -> list[Line]:
    """The results so far."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def write_document(text: str) -> None:
    """Replace the generated section."""
    replace_section(DOCUMENT, MARKER, text)


def section(lines: list[Line], budget: dict[str, Any]) -> str:
    """All of it, from the lines of one budget; rows without one say so."""
    return "\n".join([head(budget), "", *models(lines), "", *lava(lines), "", *energy(lines), *picture(lines)])


def head(budget: dict[str, Any]) -> str:
    """The budget, in words."""
    said = {name: f"{value:,}" if isinstance(value, int) else f"{value:g}" for name, value in budget.items()}
    return (
        "{mazes} training mazes; {steps} steps of {batch} windows, learning rate {learning_rate}; width {width}, "
        "{blocks} blocks, context {context}. Token accuracy on whole recorded walks through {unseen} test mazes; "
        "walks of its own through {unseen} other ones within four moves per open cell; of the dense rival both on the "
        "first {rival_mazes}, in Lava walks through {lava_mazes}.".format_map(said)
    )


def models(lines: list[Line]) -> list[str]:
    """The integers and the rival: means over training seeds."""
    rows = [
        "| model | parameters | training seeds | token accuracy, % | mazes solved, % | moves / shortest |",
        "|---" * 6 + "|",
    ]
    seeds = ", ".join(str(line["seed"]) for line in lines) or "none"
    for name, of_model in (
        ("STRL-spike, 8-bit integers, fast engine", "integers"),
        ("dense (Decision Transformer), fp32", "dense"),
    ):
        counts = {line["parameters"]["spike" if of_model == "integers" else "dense"] for line in lines}
        found = [line[of_model] for line in lines]
        accuracy = spread([each["accuracy"] for each in found])
        solved = spread([each["solved"] / each["mazes"] for each in found])
        ways = [each["moves_over_shortest"] for each in found if each["solved"]]
        moves = spread(ways, "") if ways or not found else "none solved"
        parameters = ", ".join(f"{count:,}" for count in sorted(counts)) or NOT_RUN
        rows.append(f"| {name} | {parameters} | {seeds} | {accuracy} | {solved} | {moves} |")
    return rows


def lava(lines: list[Line]) -> list[str]:
    """What was compared with the reference, on both engines."""
    rows = [
        "| engine | training seed | mazes solved | decisions | of them compared | spikes compared | different "
        "| accumulators different |",
        "|---" * 8 + "|",
    ]
    for name, of_engine in (("fast", "integers"), ("Lava", "lava")):
        for line in lines:
            found = line[of_engine]
            counts = (found[key] for key in ("decisions", "checked_decisions", "compared_spikes", "mismatches"))
            numbers = " | ".join(f"{count:,}" for count in (*counts, found["accumulator_mismatches"]))
            rows.append(f"| {name} | {line['seed']} | {found['solved']:,} of {found['mazes']:,} | {numbers} |")
        if not lines:
            rows.append(f"| {name} | |" + f" {NOT_RUN} |" * 6)
    return rows


def energy(lines: list[Line]) -> list[str]:
    """Energy per decision, and per maze: decisions of all mazes walked through, over the number of mazes."""
    rows = [
        "| preset | grade | training seed | uJ per decision [low, high] | uJ per maze [low, high] |",
        "|---" * 5 + "|",
    ]
    for line in lines:
        for name in PRESETS:
            priced = line["energy"][name]
            joules = " | ".join(band(priced[per]) for per in ("per_decision", "per_maze"))
            rows.append(f"| {name} | {priced['grade']} | {line['seed']} | {joules} |")
    return rows if lines else [*rows, *(f"| {name} | | | {NOT_RUN} | {NOT_RUN} |" for name in PRESETS)]


def band(joules: dict[str, float]) -> str:
    """Nominal, with its band where there is one."""
    values = [joules[name] / MICROJOULE for name in ("low", "nominal", "high")]
    low, nominal, high = (f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" for value in values)
    return nominal if low == high else f"{nominal} [{low}, {high}]"


def picture(lines: list[Line]) -> list[str]:
    """The one of the first line, with its caption."""
    if not lines:
        return []
    shown = lines[0]["picture"]
    said = "reached" if shown["solved"] else "not reached"
    return [
        "",
        "![A maze walked through, and the spikes](maze_solved.png)",
        "",
        f"The maze of reset seed {shown['maze']} (training seed {lines[0]['seed']}), the shortest walk of those in "
        f"Lava: the goal is {said} after {shown['moves']} moves, the shortest path has {shown['shortest']}. Below, the "
        "spikes that Lava's simulator has sent meanwhile; of two neurons the picture has room for one.",
    ]


def draw_walk(path: Path, network_file: Path, recording: Path, spike_file: Path) -> Line:
    """Draw the shortest walk of a recorded run that reached the goal (the first walk if none did): the maze, and under
    it the spikes. Returns what is shown.

    Raises:
        RuntimeError: the environment, given the recorded moves, does not end where the recording says.
    """
    network, episodes = read_network(network_file), read_recording(recording).episodes
    walked = [walk(taped) for taped in episodes]
    solved = [index for index, (_, info) in enumerate(walked) if info["success"]]
    index = min(solved, key=lambda each: episodes[each].episode.decisions, default=0)
    shown, info = walked[index]
    spikes = spikes_of(network, spike_file, index, episodes[index].episode.decisions)
    compose(path, shown, network, spikes)
    episode = episodes[index].episode
    facts = {"maze": episode.seed, "moves": episode.decisions, "shortest": int(info["shortest"])}
    return {**facts, "solved": bool(info["success"])}


def walk(taped: TapedEpisode) -> tuple[Picture, dict[str, Any]]:
    """The recorded moves in the environment once more: its last picture, and what it says of it."""
    environment = gymnasium.make("dsf/Maze-v0", render_mode="rgb_array")
    _, info = environment.reset(seed=taped.episode.seed)
    earned = 0.0
    for action in taped.actions:
        _, reward, _, _, info = environment.step(np.int64(action.argmax()))
        earned += float(reward)
    shown = environment.render()
    environment.close()
    if earned != taped.episode.episode_return:
        raise RuntimeError(
            f"maze of seed {taped.episode.seed}: {earned} earned, {taped.episode.episode_return} recorded"
        )
    return shown, info  # type: ignore[return-value]  # gymnasium cannot say of which mode


def spikes_of(network: Network, spike_file: Path, episode: int, decisions: int) -> list[Spikes]:
    """Spikes of one episode, as engines report them: per decision and population (ticks, neurons)."""
    with np.load(spike_file) as archive:
        first = int(archive[EPISODE_STARTS][episode])
        names = [node.name for node in network.nodes if node.name in archive.files]
        rasters: dict[str, npt.NDArray[np.bool_]] = {name: archive[name][first : first + decisions] for name in names}
    return [{name: raster[each].astype(np.int64) for name, raster in rasters.items()} for each in range(decisions)]


def compose(path: Path, shown: Picture, network: Network, spikes: list[Spikes]) -> None:
    """Maze above, spikes below, as a PNG file."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 10.5), height_ratios=(3, 6), layout="constrained")
    above.imshow(shown, interpolation="nearest")
    above.set_axis_off()
    draw_spikes(below, network, spikes)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})
    plt.close(figure)
