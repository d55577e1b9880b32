"""Rivals on the real command line: they train, resume, are scored, keep their size, and cannot be exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dsf.export.cli import main as export_main
from dsf.runtime.cli import main as sim_main
from dsf.shell.command import parse_arguments
from dsf.shell.errors import CommandFailed
from dsf.testing.command_line import assert_refused
from dsf.testing.training_runs import CARTPOLE, HOPPER, TINY, UNSCORED, metrics, run_here, train_here, trained
from dsf.train import TrainConfig, train
from dsf.train.checkpoint import load_checkpoint, save_checkpoint
from dsf.train.observer import TrainingObserver
from dsf.train.run_directory import LOSS

STEPS = 100
SCORED = ("--eval-episodes", "1", "--eval-targets", "3600")
FAST = ("--learning-rate", "3e-3", "--batch-size", "16")
KINDS = ("dt", "bc", "fcnet", "spikegpt", "spikebert", "strl", "twin")
SPIKING = ("spikegpt", "spikebert", "strl")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_rival_trains_reloads_is_scored_and_not_exported(kind: str, tiny_store: Path, tmp_path: Path) -> None:
    settings = ("--steps", str(STEPS), *TINY, *FAST, *SCORED, "--policy", kind)
    said = trained(HOPPER, "--out", str(tmp_path), *settings)
    assert f"--policy {kind}) cannot become spikes" in said and "DSFormer-PSSA of this --model: 1,270" in said
    rows = metrics(tmp_path)
    losses = [row[LOSS] for row in rows if LOSS in row]
    assert len(losses) == STEPS and sum(losses[-10:]) < sum(losses[:10])
    assert "eval/return@3600" in rows[-1] and any(key.startswith("rate/") for key in rows[-1]) == (kind in SPIKING)

    checkpoint = load_checkpoint(tmp_path)
    (score,) = checkpoint.header["scores"]
    assert len(score["returns"]) == 1 and checkpoint.header["policy"] == checkpoint.policy() == kind
    model = checkpoint.build_model()
    assert not model.training and model.rival is not None and model.kind == kind
    out = tmp_path / "network.dsf.h5"
    refused = run_here(export_main, "dsf-export", str(tmp_path), "--target", "loihi", "-o", str(out))
    assert_refused(refused, f"--policy {kind}) cannot become spikes", "train with --policy dsformer")
    driven = run_here(sim_main, "dsf-sim-run", "--backend", "reference", "--checkpoint", str(tmp_path))
    assert_refused(driven, f"--policy {kind}) cannot become spikes", "train with --policy dsformer")
    assert not out.exists()


class PowerCut(TrainingObserver):
    """Ends a run after its seventh step."""

    def stepped(self, step: int, steps: int, loss: float) -> None:
        if step == 7:
            raise CommandFailed("the power went off")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("same_threads")
def test_interrupted_rival_continues_bit_for_bit(kind: str, tiny_store: Path, tmp_path: Path) -> None:
    settings = ("--steps", "12", "--checkpoint-every", "5", *TINY, *UNSCORED, "--policy", kind)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    trained(HOPPER, "--out", str(whole), *settings)
    config = parse_arguments(TrainConfig, "dsf-train", "", [HOPPER, "--out", str(broken), *settings])
    with pytest.raises(CommandFailed, match="the power went off"):
        train(config, PowerCut())
    assert load_checkpoint(broken).header["step"] == 5
    torch.rand(3)  # what is left of the generator does not matter
    trained(HOPPER, "--out", str(broken), *settings, "--resume")
    mine, theirs = load_checkpoint(broken).tensors, load_checkpoint(whole).tensors
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert metrics(broken) == metrics(whole)
    assert_refused(train_here(HOPPER, "--out", str(broken), *settings[:-2], "--resume"), "another policy")


@pytest.mark.slow
def test_rivals_choose_among_actions_too(tiny_store: Path, tmp_path: Path) -> None:
    for kind in KINDS:
        out = tmp_path / kind
        scored = ("--eval-episodes", "1", "--eval-targets", "50")
        trained(CARTPOLE, "--out", str(out), "--steps", "10", *TINY, *scored, "--policy", kind)
        model = load_checkpoint(out).build_model()
        assert model.discrete and len(load_checkpoint(out).header["scores"]) == 1


def test_runs_older_than_rivals_are_read_and_resumed(tiny_store: Path, tmp_path: Path) -> None:
    settings = ("--steps", "6", *TINY, *UNSCORED)
    trained(HOPPER, "--out", str(tmp_path), *settings)
    checkpoint = load_checkpoint(tmp_path)
    header = json.loads(json.dumps(checkpoint.header))
    del header["policy"], header["rival"], header["train"]["policy"], header["train"]["rival"]
    save_checkpoint(checkpoint.path, checkpoint.tensors, header)
    assert load_checkpoint(tmp_path).build_model().rival is None
    trained(HOPPER, "--out", str(tmp_path), *settings, "--resume")
    refused = train_here(HOPPER, "--out", str(tmp_path), *settings, "--resume", "--policy", "bc")
    assert_refused(refused, "--resume", "another")


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (("--policy", "gpt"), ("--policy",)),
        (("--policy", "bc", "--rival.heads", "2"), ("--policy bc does not use rival.heads",)),
        (("--policy", "bc", "--rival.mlp-hidden", "2"), ("does not use rival.mlp_hidden",)),
        (("--rival.heads", "2"), ("--policy dsformer does not use rival.heads",)),
        (("--policy", "dt", "--rival.heads", "7"), ("rival.heads is 7: it divides no width",)),
        (("--policy", "dt", "--rival.dropout", "1"), ("rival.dropout is 1",)),
        (("--policy", "dt", "--rate-penalty", "1"), ("--rate-penalty requires --policy dsformer, not dt",)),
        (("--policy", "dt", "--qat-steps", "1"), ("--qat-steps needs a trained float model", "--init")),
        (("--policy", "dt", "--precision", "bf16"), ("--precision bf16 requires --policy dsformer",)),
    ],
)
def test_wrong_rivals_are_refused(
    arguments: tuple[str, ...], fragments: tuple[str, ...], tiny_store: Path, tmp_path: Path
) -> None:
    sizes = ("--model.width", "6")  # TINY's is 8, the last one counts
    assert_refused(train_here(HOPPER, "--out", str(tmp_path / "run"), *TINY, *sizes, *arguments), *fragments)
    assert not (tmp_path / "run").exists()
