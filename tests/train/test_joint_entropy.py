"""experiments/joint_entropy.py: estimators against closed forms, what is recorded, and the document."""

from __future__ import annotations

import subprocess
from pathlib import Path

import entropy_estimators
import joint_entropy
import joint_entropy_report
import numpy as np
import pytest
import torch

from dsf.runtime.artifacts import checkpoint_path
from dsf.shell.file_values import read_json
from dsf.shell.generated_section import markers
from dsf.testing.command_line import assert_refused
from dsf.testing.random_networks import random_model
from dsf.testing.training_runs import HOPPER, TINY, UNSCORED, run_here, trained

INDEPENDENT, CHAIN, REPEATED = entropy_estimators.SOURCES
SAMPLES, TICKS, NEURONS = 20_000, 4, 2


def test_estimates_of_a_few_samples_are_those_worked_out_by_hand() -> None:
    two, one = np.array([1, 0, 1]), np.array([5, 0])
    # Two samples, two states: 1 bit, and (2 - 1) / (2 * 2 ln 2) more; without either sample 0 bits: 2 * 1 - 1/2 * 0.
    assert entropy_estimators.plug_in(two) == 1.0
    assert entropy_estimators.miller_madow(two) == pytest.approx(1 + 1 / (4 * np.log(2)))
    assert entropy_estimators.jackknife(two) == pytest.approx(2.0)
    assert [estimate(one) for estimate in entropy_estimators.ESTIMATORS.values()] == pytest.approx([0.0] * 4)
    # Counts 2, 1, 1: coverage 1 - 2/4, shares 1/4, 1/8, 1/8, seen with chance 1 - (3/4)^4 and 1 - (7/8)^4.
    seen = np.array([2, 1, 1])
    assert entropy_estimators.coverage(seen) == 0.5
    by_hand = 0.25 * 2 / (1 - 0.75**4) + 2 * 0.125 * 3 / (1 - 0.875**4)
    assert entropy_estimators.chao_shen(seen) == pytest.approx(by_hand)
    # The jackknife by leaving out one sample after the other.
    left = [np.array(counts) for counts in ([1, 1, 1], [1, 1, 1], [2, 0, 1], [2, 1, 0])]
    without = sum(map(entropy_estimators.plug_in, left)) / 4
    assert entropy_estimators.jackknife(seen) == pytest.approx(4 * 1.5 - 3 * without)


def test_sources_have_the_entropy_of_their_closed_form() -> None:
    assert INDEPENDENT.joint(3, 4) == INDEPENDENT.sum_of_ticks(3, 4) == 12.0
    assert (REPEATED.joint(3, 4), REPEATED.sum_of_ticks(3, 4)) == (3.0, 12.0)
    # Rate 1/4, six in ten repeat: a spike is followed by none with 0.3, none by a spike with 0.1.
    # H(0.25) = 0.811278, H(0.3) = 0.881291, H(0.1) = 0.468996: 0.25 * 0.881291 + 0.75 * 0.468996 = 0.572070.
    assert CHAIN.joint(1, 4) == pytest.approx(0.811278 + 3 * 0.572070, abs=1e-5)
    assert CHAIN.sum_of_ticks(2, 4) == pytest.approx(8 * 0.811278, abs=1e-5)


@pytest.mark.parametrize("source", entropy_estimators.SOURCES, ids=lambda source: source.name)
def test_estimates_of_a_source_meet_its_closed_form(source: entropy_estimators.Source) -> None:
    """The sampling error of an entropy is about sqrt(variance of log p / samples): 0.01 bits here."""
    generator = np.random.default_rng(1)
    spikes = source.draw(TICKS, SAMPLES, NEURONS, generator)
    found = joint_entropy.measure(spikes, np.arange(SAMPLES) % 10, NEURONS, 10, generator)
    truth = source.joint(NEURONS, TICKS)
    assert found["joint"]["jackknife"] == pytest.approx(truth, abs=0.03)
    assert found["joint"]["plug-in"] < found["joint"]["jackknife"] or source is REPEATED
    assert found["sum"]["jackknife"] == pytest.approx(source.sum_of_ticks(NEURONS, TICKS), abs=0.03)
    assert found["ratio"] == pytest.approx(truth / source.sum_of_ticks(NEURONS, TICKS), abs=0.005)
    first = source.joint(NEURONS, 1)
    assert found["growth"] == pytest.approx([source.joint(NEURONS, count) for count in range(1, 5)], abs=0.03)
    assert found["ticks"] == pytest.approx([first] * TICKS, abs=0.03)
    # Shuffled over the samples, ticks are independent, whatever they were.
    assert found["gap_shuffled"] == pytest.approx(0.0, abs=0.01)
    assert abs(found["gap"] - (found["sum"]["jackknife"] - truth)) < 0.03
    assert 0 < found["gap_error"] < 0.05


def test_the_shuffled_control_has_no_dependence_where_the_plug_in_feigns_one() -> None:
    generator = np.random.default_rng(2)
    spikes = INDEPENDENT.draw(TICKS, 3_000, 2, generator)
    found = joint_entropy.measure(spikes, np.arange(3_000) % 10, 2, 10, generator)
    feigned = found["sum"]["plug-in"] - found["joint"]["plug-in"]
    assert feigned == pytest.approx(
        255 / (2 * np.log(2) * 3_000), rel=0.2
    )  # (states - 1) / (2 ln 2 samples), less the ticks'
    assert abs(found["gap"]) < 0.2 * feigned and abs(found["gap_shuffled"]) < 0.2 * feigned


def test_what_is_recorded_is_the_last_token_of_each_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint_entropy, "WINDOWS_AT_A_TIME", 3)
    model, generator = random_model(seed=3, attention="tssa"), np.random.default_rng(0)
    integers = generator.integers(-100, 100, (5, 8, 6)).astype(np.float32)
    lengths = np.array([8, 1, 5, 8, 2])
    mask = np.arange(8) >= (8 - lengths)[:, None]
    integers[~mask] = 0.0
    found = joint_entropy.record(model, joint_entropy.Samples(integers, mask, np.arange(5)))
    assert sorted(found) == sorted((block, name) for block in (0, 1) for name in joint_entropy.POPULATIONS)
    attention = model.blocks[1].attention
    for window, length in enumerate(lengths):
        kept: list[torch.Tensor] = []
        handle = attention.qkv_lif.register_forward_hook(lambda _module, _inputs, spikes: kept.append(spikes))  # noqa: B023
        with torch.no_grad():
            model(
                torch.from_numpy(integers[window : window + 1, 8 - length :]),
                torch.ones(1, int(length), dtype=torch.bool),
            )
        handle.remove()
        expected = kept[0][:, -1].chunk(3, dim=-1)
        for name, spikes in zip(joint_entropy.POPULATIONS[1:], expected):
            assert np.array_equal(found[1, name][:, window], spikes.numpy())


def test_without_memory_every_tick_says_the_same() -> None:
    model, generator = random_model(seed=4, attention="tssa"), np.random.default_rng(0)
    integers = generator.integers(-100, 100, (400, 8, 6)).astype(np.float32)
    samples = joint_entropy.Samples(integers, np.ones((400, 8), bool), np.arange(400))
    ratios = {}
    for memory in (True, False):
        if not memory:
            joint_entropy.without_memory(model)
        for place, spikes in joint_entropy.record(model, samples).items():
            found = joint_entropy.measure(spikes, np.arange(400) % 10, 1, 10, np.random.default_rng(0))
            ratios[place, memory] = found["ratio"]
            assert memory or np.array_equal(spikes, np.broadcast_to(spikes[:1], spikes.shape))
    assert all(ratio == pytest.approx(0.25) for (_, memory), ratio in ratios.items() if not memory)
    assert all(0.25 < ratio < 1.1 for (_, memory), ratio in ratios.items() if memory)


def test_whole_episodes_share_a_fold() -> None:
    episodes = np.repeat([3, 4, 9, 11], [1, 5, 2, 3])
    folds = joint_entropy.folds_of(episodes, np.random.default_rng(0))
    assert len({(episode, fold) for episode, fold in zip(episodes, folds)}) == 4 and sorted(set(folds)) == [0, 1, 2, 3]
    many = joint_entropy.folds_of(np.arange(25), np.random.default_rng(0))
    assert sorted(np.bincount(many)) == [2] * 5 + [3] * 5


def measure(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_here(joint_entropy.main, "joint_entropy", *map(str, arguments))


@pytest.fixture
def tssa_run(tiny_store: Path, same_threads: None, tmp_path: Path) -> Path:
    trained(HOPPER, "--out", str(tmp_path / "run"), *TINY, *UNSCORED, "--steps", "2", "--model.attention", "tssa")
    return tmp_path / "run"


def test_a_run_is_measured_and_shown(tssa_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    places = {"DOCUMENT": "results.md", "PICTURE": "joint_entropy.png", "RESULTS": "joint_entropy.json"}
    for name, file in places.items():
        monkeypatch.setattr(joint_entropy_report, name, tmp_path / file)
    asked = ("--samples", 300, "--groups", 10, "--sizes", 1, 2)
    done = measure(tssa_run, *asked)
    assert done.returncode == 0, done.stderr
    found = read_json(tmp_path / "joint_entropy.json", "results")
    assert len(found["populations"]) == 2 * 4 * 2 and len(found["sources"]) == 3 * 2  # memory, populations, sizes
    forgetful = [line["ratio"] for line in found["populations"] if not line["memory"]]
    assert [ratio for ratio in forgetful if ratio is not None] == pytest.approx([0.25] * (8 - forgetful.count(None)))
    text = (tmp_path / "results.md").read_text()
    assert (
        joint_entropy_report.section(found) in text
        and "training seed 0; spikes of the last token of 300 windows" in text
    )
    assert (tmp_path / "joint_entropy.png").read_bytes().startswith(b"\x89PNG")
    first = (tmp_path / "joint_entropy.json").read_bytes()
    measure(tssa_run, *asked)
    assert (tmp_path / "joint_entropy.json").read_bytes() == first  # seeds decide everything

    assert_refused(
        measure(tssa_run, "--samples", 5_000), "joint_entropy", "--samples is 5000", "ask for that many or fewer"
    )
    assert_refused(measure(tssa_run, "--sizes", 5), "joint_entropy", "groups of at most 4 neurons")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert_refused(measure(tssa_run), "joint_entropy", HOPPER)


def test_the_document_shows_what_was_measured() -> None:
    begin, end = markers(joint_entropy_report.MARKER)
    inside = joint_entropy_report.DOCUMENT.read_text().partition(f"{begin}\n")[2].partition(end)[0]
    assert inside == joint_entropy_report.section(read_json(joint_entropy_report.RESULTS, "results"))


def test_bad_input_ends_in_one_line(tmp_path: Path) -> None:
    assert_refused(measure(), "joint_entropy", "give one of RUN")
    assert_refused(measure("--quick", "--render"), "joint_entropy", "give one of RUN")
    assert_refused(measure("--quick", "--samples", 3), "joint_entropy", "--samples is 3")
    assert_refused(measure("--quick", "--sizes", 0), "joint_entropy", "--sizes is 0")
    assert_refused(measure(checkpoint_path()), "joint_entropy", "has attention pssa", "--model.attention tssa")
    assert_refused(measure(tmp_path / "nowhere"), "joint_entropy", "nowhere")
    assert_refused(measure("--quick", "--json", tmp_path / "no" / "x.json"), "joint_entropy", "x.json")
