"""A whole model by its name: what it is, what contradicts it, and the paper's own from training to every engine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsf.export import ExportConfig, export
from dsf.export.network.file import read_network
from dsf.export.network.network import Network
from dsf.export.network.nodes import HostEmbedding, Outer, PlacedWindow
from dsf.export.network.reference import encode
from dsf.runtime.engines.parity import ParityCheck
from dsf.runtime.open_engine import open_engine
from dsf.shell.command import parse_arguments
from dsf.shell.errors import UserError
from dsf.testing.lava import lava_runs_here
from dsf.testing.random_networks import write_checkpoint
from dsf.testing.training_runs import HOPPER, UNSCORED, train_here, trained
from dsf.train.checkpoint import load_checkpoint
from dsf.train.config.training import CONFIG_NAME, PRESETS, ModelConfig, TrainConfig
from dsf.train.data.dataset import load_dataset
from dsf.train.initial import initial_model

SHORT = ("--steps", "2", "--batch-size", "4", "--threads", "1", "--device", "cpu", *UNSCORED)
DECISIONS = 3


def parsed(*words: str) -> TrainConfig:
    found: TrainConfig = parse_arguments(TrainConfig, "dsf-train", "", [HOPPER, *words])
    return found


def test_the_presets_are_the_papers_models_and_ours() -> None:
    assert PRESETS["dsf"] == ModelConfig() == parsed("--preset", "dsf").model == parsed().model
    pssa, tssa = PRESETS["paper-pssa"], PRESETS["paper-tssa"]
    shared: dict[str, float] = {
        "width": 128,
        "blocks": 3,
        "ticks": 4,
        "context": 20,
        "window": 8,
        "heads": 1,
        "mlp_ratio": 4,
    }
    shared |= {"threshold": 0.5, "decay": 0.25, "attention_surrogate_width": 1.0, "input_bits": 0}
    for model in (pssa, tssa):
        assert {name: getattr(model, name) for name in shared} == shared
        assert (model.embed_norm, model.norm, model.positional_bias) == ("layernorm", "ptbn", "full")
        assert model.scale_of_attention == 1.0 and not model.stream_is_exact
    assert (pssa.attention, tssa.attention) == ("pssa", "tssa")
    assert dataclasses.replace(tssa, attention="pssa", attention_scale=None) == pssa


@pytest.mark.parametrize("words", [("--preset", "paper-tssa"), ("--preset=paper-tssa",)])
def test_what_repeats_a_preset_is_fine(words: tuple[str, ...]) -> None:
    repeated = ("--model.window", "8", "--model.attention", "tssa", "--model.input-bits", "0")
    for config in (parsed(*words), parsed(*words, *repeated), parsed(*repeated, *words)):
        assert config.model == PRESETS["paper-tssa"] and config.preset == "paper-tssa"
    assert TrainConfig(HOPPER, preset="paper-tssa") == parsed(*words)
    assert TrainConfig(HOPPER, preset="paper-tssa", model=PRESETS["paper-tssa"]) == parsed(*words)
    again = dataclasses.replace(TrainConfig(HOPPER, preset="paper-tssa"), steps=5)
    assert again.model == PRESETS["paper-tssa"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (
            ("--preset", "paper-pssa", "--model.window", "5"),
            "--preset paper-pssa sets --model.window to 8, and --model.window 5",
        ),
        (("--model.window", "7", "--preset", "paper-pssa"), "--model.window 7 contradicts it"),  # 7 is our default
        (("--preset=paper-tssa", "--model.attention", "pssa"), "--model.attention pssa contradicts it"),
        (("--preset", "paper-tssa", "--model.input-bits", "8"), "--model.input-bits 8 contradicts it"),
        (("--preset", "dsf", "--model.width", "64"), "--preset dsf sets --model.width to 128"),
        (("--preset", "paper-pssa", "--policy", "dt"), "--preset paper-pssa requires --policy dsformer, not dt"),
        (("--preset", "paper"), "invalid choice 'paper'"),
        (("--model.input-bits", "3"), "model.input_bits is 3: use 4 to 16, or 0"),
    ],
)
def test_what_contradicts_a_preset_is_refused_in_one_line(words: tuple[str, ...], named: str) -> None:
    with pytest.raises(UserError) as refusal:
        parsed(*words)
    assert named in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_config_in_python_is_refused_alike() -> None:
    with pytest.raises(UserError, match=r"--preset paper-pssa sets --model.positional-bias to full"):
        TrainConfig(HOPPER, preset="paper-pssa", model=ModelConfig())


def tokens_of(dataset: Any) -> np.ndarray:
    """Float token vectors of an episode's start, (steps, 1, features)."""
    return np.array(dataset.tokens[:DECISIONS], np.float64)[:, None]


def assert_exact(network: Network, tokens: np.ndarray, backend: Any, model: Any = "fused") -> None:
    """One engine against the reference in window mode, from float tokens."""
    check = ParityCheck(network, "window")
    with open_engine(network, backend, model, "window") as engine:
        engine.reset(0)
        for vector in tokens:
            decision = engine.step(vector)
            check.check(encode(network.encoder, vector), decision.accumulators, decision.spikes)
    assert check.result.exact and check.result.compared_spikes > 0, check.result


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["paper-pssa", "paper-tssa"])
def test_the_papers_models_from_training_to_every_engine(preset: str, tiny_store: Path, tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "network.dsf.h5"
    said = trained(HOPPER, "--preset", preset, "--out", str(run), *SHORT)
    assert "cannot be exported" not in said
    assert json.loads((run / CONFIG_NAME).read_text())["preset"] == preset
    header = load_checkpoint(run).header
    assert header["train"]["preset"] == preset and header["model"]["window"] == 8 and header["codec"]["bits"] == 0

    done = export(ExportConfig(run, out=file, dataset=HOPPER, episodes=0))
    rungs = {rung.name: rung.passed for rung in done.rungs}
    assert rungs["L0 torch -> L1 folded float"] and rungs["L1 folded float -> host embedding"]
    assert all(passed is not False for passed in rungs.values())
    network = read_network(file)
    assert isinstance(network.encoder, HostEmbedding) and (network.encoder.size, network.encoder.features) == (128, 15)
    assert len(list(network.of_kind(PlacedWindow if preset == "paper-pssa" else Outer))) == 3
    tokens = tokens_of(load_dataset(HOPPER))
    assert_exact(network, tokens, "fast")
    if lava_runs_here():
        assert_exact(network, tokens, "lava")


def test_a_checkpoint_from_before_the_embeddings_bias_means_the_same(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "new.safetensors", embed_norm="layernorm", input_bits=0)
    new = load_checkpoint(path)
    tensors = {name: tensor for name, tensor in new.tensors.items() if name != "model.embed.bias"}
    old = dataclasses.replace(new, tensors=tensors).build_trained()
    assert old.embed.bias is not None and not old.embed.bias.any()
    assert torch.equal(old.embed.weight, new.build_trained().embed.weight)


@pytest.mark.parametrize(
    ("bits", "words"), [(8, "its codec has 8 bits and its model.input_bits is 0"), (True, "bits is")]
)
def test_a_codec_that_is_not_the_models_is_refused(bits: Any, words: str, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "x.safetensors", embed_norm="layernorm", input_bits=0)
    checkpoint = load_checkpoint(path)
    header = {**checkpoint.header, "codec": {**checkpoint.header["codec"], "bits": bits}}
    with pytest.raises((UserError, TypeError), match=words):
        dataclasses.replace(checkpoint, header=header).build_trained()


def test_the_papers_parameters(tiny_store: Path) -> None:
    """The release has 611,507 on Hopper, 3,456 of them biases that a batch norm takes away again."""
    data = load_dataset(HOPPER)
    model = initial_model(TrainConfig(HOPPER, preset="paper-pssa"), data)
    assert model.parameter_count() == 611_507 - 3 * (3 * 128 + 128 + 512 + 128)


@pytest.mark.slow
def test_a_run_resumes_by_the_fields_and_not_by_the_name(tiny_store: Path, tmp_path: Path) -> None:
    trained(HOPPER, "--preset", "paper-pssa", "--out", str(tmp_path), *SHORT)
    biased = ("--model.positional-bias", "full", "--model.window", "8", "--model.attention-surrogate-width", "1")
    spelled = (*biased, "--model.embed-norm", "layernorm", "--model.input-bits", "0")
    trained(HOPPER, "--resume", "--out", str(tmp_path), *SHORT, *spelled)
    refused = train_here(HOPPER, "--resume", "--preset", "paper-tssa", "--out", str(tmp_path), *SHORT)
    assert refused.returncode == 2 and "was trained with another model" in refused.stderr
