"""A dense rival at int8: integers are integers, sums exact, actions close, and a run can be scored with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dsf.shell.errors import UserError
from dsf.testing.command_line import assert_refused
from dsf.testing.rival_models import CONTEXT, small_model, windows
from dsf.testing.training_runs import HOPPER, TINY, UNSCORED, run_here, trained
from dsf.train.checkpoint import load_checkpoint
from dsf.train.cli import main
from dsf.train.config.rivals import PolicyKind
from dsf.train.evaluation.finished_run import score_run
from dsf.train.models.rivals.int8 import Int8Linear, int8_copy, int8_product, to_int8


def test_codes_are_integers_within_half_a_step() -> None:
    values = torch.randn(5, 7, 33, generator=torch.Generator().manual_seed(0)) * 3.0
    values[2, 3] = 0.0
    codes, scale = to_int8(values)
    assert codes.dtype == torch.int8 and scale.shape == (5, 7, 1) and int(codes.abs().max()) == 127
    assert ((codes * scale - values).abs() <= scale * 0.5001).all()
    assert not codes[2, 3].any() and torch.isfinite(scale).all()
    assert (codes.abs().amax(dim=-1)[2, :3] == 127).all()  # every token has its own scale


def test_sums_are_those_of_integers_even_where_floats_would_round() -> None:
    generator = np.random.default_rng(0)
    codes, weight = (generator.integers(-127, 128, shape).astype(np.int8) for shape in ((9, 4096), (6, 4096)))
    codes[0], weight[0] = 127, 127
    found = int8_product(torch.from_numpy(codes), torch.from_numpy(weight))
    assert found.dtype == torch.int32 and int(found[0, 0]) == 127 * 127 * 4096
    assert np.array_equal(found.numpy(), codes.astype(np.int64) @ weight.astype(np.int64).T)


def test_a_linear_is_its_integer_equation() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(20, 12)
    values, layer = torch.randn(4, 20), Int8Linear(linear)
    assert layer.weight.dtype == torch.int8 and layer.scale.shape == (12,)
    codes, scale = to_int8(values)
    sums = codes.numpy().astype(np.int32) @ layer.weight.numpy().astype(np.int32).T
    expected = sums * (scale * layer.scale).numpy() + linear.bias.detach().numpy()
    assert np.allclose(layer(values).detach().numpy(), expected, atol=1e-6)
    assert float((layer(values) - linear(values)).detach().abs().max()) < 0.05


@pytest.mark.parametrize("kind", ["dt", "bc"])
@torch.no_grad()
def test_int8_decides_nearly_as_fp32_and_leaves_the_model_alone(kind: PolicyKind) -> None:
    model, mask = small_model(kind), torch.ones(16, CONTEXT, dtype=torch.bool)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    integers = int8_copy(model)
    exact, near = model(windows(16), mask), integers(windows(16), mask)
    error = (exact - near).abs()
    assert 0.0 < float(error.mean()) < 0.02 and float(exact.std()) > 0.1
    assert not any(isinstance(module, nn.Linear) for module in integers.modules())
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.slow
def test_a_run_is_scored_at_both_precisions(tiny_store: Path, tmp_path: Path) -> None:
    run, scored = tmp_path / "run", ("--eval-episodes", "2", "--eval-targets", "3600", "--eval-seed", "7")
    trained(HOPPER, "--out", str(run), "--steps", "100", *TINY, *scored, "--policy", "dt")
    before = (run / "checkpoint.safetensors").read_bytes()
    (recorded,) = load_checkpoint(run).header["scores"]
    (floats,) = score_run(run, "fp32", (3600.0,), 2, 7)
    assert floats.to_json() == recorded
    (integers,) = score_run(run, "int8", (3600.0,), 2, 7)
    assert integers.engine == "torch int8" and integers.seeds == (7, 8)
    out = tmp_path / "scores.json"
    asked = ("--targets", "3600", "--episodes", "2", "--seed", "7", "--threads", "1", "--json", str(out))
    said = run_here(main, "dsf-train", "evaluate", str(run), "--precision", "int8", *asked)
    assert said.returncode == 0 and "int8: last checkpoint, target return 3600, 2 episodes" in said.stdout, said.stderr
    assert json.loads(out.read_text()) == [integers.to_json()]
    assert (run / "checkpoint.safetensors").read_bytes() == before


def test_what_has_no_int8_form_is_refused(tiny_store: Path, tmp_path: Path) -> None:
    trained(HOPPER, "--out", str(tmp_path), "--steps", "2", *TINY, *UNSCORED)
    refused = run_here(main, "dsf-train", "evaluate", str(tmp_path), "--precision", "int8")
    assert_refused(refused, "precision int8 requires a dense rival", "dsf-export")
    with pytest.raises(UserError, match="precision is 'int4'"):
        score_run(tmp_path, "int4")  # type: ignore[arg-type]
    assert_refused(run_here(main, "dsf-train", "evaluate", str(tmp_path), "--episodes", "0"), "--episodes is 0")
    assert_refused(run_here(main, "dsf-train", "evaluate", str(tmp_path / "none")), "no checkpoint at")
    destroying = ("--json", str(tmp_path / "checkpoint.safetensors"))
    assert_refused(run_here(main, "dsf-train", "evaluate", str(tmp_path), *destroying), "checkpoint.safetensors")


def test_a_matrix_that_is_no_linear_is_named() -> None:
    model = small_model("dt")
    model.get_submodule("blocks.0").register_parameter("filter", nn.Parameter(torch.ones(2, 2)))
    with pytest.raises(UserError, match=r"Decision Transformer \(--policy dt\) has blocks.0.filter besides: use fp32"):
        int8_copy(model)


@pytest.mark.slow
def test_dsformer_and_its_best_checkpoint_are_scored_too(tiny_store: Path, tmp_path: Path) -> None:
    scored = ("--eval-episodes", "1", "--eval-targets", "3600", "--eval-seed", "7", "--eval-every", "5")
    trained(HOPPER, "--out", str(tmp_path), "--steps", "10", *TINY, *scored)
    header = load_checkpoint(tmp_path).header
    (last,) = score_run(tmp_path, targets=(3600.0,), episodes=1, seed=7)
    assert [last.to_json()] == header["scores"]
    (best,) = score_run(tmp_path / "best.safetensors", targets=(3600.0,), episodes=1, seed=7)
    assert best.to_json() == header["best"] and best.checkpoint == "best"
    assert [score.target_return for score in score_run(tmp_path, episodes=1)] == [3600.0, 1800.0]
