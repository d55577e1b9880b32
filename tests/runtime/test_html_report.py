"""The page that ``dsf-sim-run --html`` writes: complete, self-contained, and with a film of what happened."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from dsf.export.network.file import write_network
from dsf.runtime.report.figures import reward_curve
from dsf.runtime.report.sketch import FRAME_S, sketch_episode
from dsf.tasks import get_task
from dsf.testing.command_line import assert_refused, run_command
from dsf.testing.random_networks import random_network

HEADINGS = (
    "The episode of reset seed 4",
    "Returns",
    "Spikes",
    "Inputs beyond the range of the codec",
    "Firing rates",
    "Dynamic energy",
    "On the chip: loihi2_derived (grade D)",
    "Layer by layer: loihi2_derived (grade D)",
    "Verification, as written by dsf-export",
    "Wall time",
    "Where the network comes from",
)


class Page(HTMLParser):
    """Headings, and whatever would be fetched from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href") and value and not value.startswith(("#", "data:")):
                self.fetched.append(value)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["stream", "window"])
def test_the_page_holds_everything_and_fetches_nothing(mode: str, tmp_path: Path) -> None:
    network, page = tmp_path / "<b>net&work.dsf.h5", tmp_path / "report.html"
    write_network(random_network(0, features=15), network)
    options = ("--backend", "fast", "--mode", mode, "--episodes", "2", "--seed", "4", "--html", str(page))
    result = run_command("dsf-sim-run", str(network), *options, "--hardware", "loihi2_derived")
    assert result.returncode == 0, result.stderr
    text = page.read_text()
    parsed = Page(text)
    assert not parsed.fetched and parsed.tags.count("svg") >= 8 and "canvas" in parsed.tags
    assert tuple(re.findall("<h2>(.*?)</h2>", text)) == HEADINGS
    sketch = json.loads(re.search('id="sketch">(.*?)</script>', text)[1])  # type: ignore[index]
    assert len(sketch["frames"]) > 2 and len(sketch["frames"][0]) == 4 * len(sketch["radii"])


def test_the_film_shows_where_the_robot_was() -> None:
    """Hopper starts upright: foot on the floor, torso above it; without torque it falls."""
    task = get_task("hopper")
    sketch = sketch_episode(task, 0, 3600.0, np.zeros((60, 3)))
    assert sketch is not None
    lowest = sketch.frames[:, :, [1, 3]].min(axis=(1, 2))
    highest = sketch.frames[:, :, [1, 3]].max(axis=(1, 2))
    assert 0.0 < lowest[0] < 0.2 and 1.2 < highest[0] < 1.7 and highest[-1] < highest[0]
    assert np.all(sketch.radii > 0.03) and sketch.frame_s == pytest.approx(0.016)


def test_a_task_without_a_control_period_has_a_film_and_a_curve() -> None:
    task = dataclasses.replace(get_task("hopper"), control_period_s=math.nan)
    sketch = sketch_episode(task, 0, 3600.0, np.zeros((5, 3)))
    assert sketch is not None and len(sketch.frames) == 6 and sketch.frame_s == FRAME_S
    assert ">step<" in reward_curve(np.ones(5), 3600.0, math.nan)


def test_without_a_mujoco_model_there_is_no_film() -> None:
    assert sketch_episode(get_task("cartpole"), 0, 500.0, np.tile([1.0, 0.0], (3, 1))) is None


def test_two_outputs_need_two_files(tmp_path: Path) -> None:
    path = str(tmp_path / "out")
    assert_refused(run_command("dsf-sim-run", "--backend", "fast", "--json", path, "--html", path), "--json and --html")
