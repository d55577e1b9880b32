"""Checkpoints whose header is damaged or of another version are refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsf.shell.errors import UserError
from dsf.testing.random_networks import write_checkpoint
from dsf.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

Header = dict[str, Any]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """A sound one."""
    return load_checkpoint(write_checkpoint(tmp_path / "run.safetensors"))


def rewritten(checkpoint: Checkpoint, change: Callable[[Header], Any]) -> Path:
    """The checkpoint with another header."""
    header = json.loads(json.dumps(checkpoint.header))
    change(header)
    save_checkpoint(checkpoint.path, checkpoint.tensors, header)
    return checkpoint.path


@pytest.mark.parametrize("key", ["model", "train", "codec", "dataset", "task", "step", "scores"])
@pytest.mark.parametrize("value", ["missing", None, 1.5])
def test_what_everybody_relies_on_is_checked_on_load(checkpoint: Checkpoint, key: str, value: Any) -> None:
    path = rewritten(checkpoint, lambda header: header.pop(key) if value == "missing" else header.update({key: value}))
    with pytest.raises(UserError, match=rf"{path} is no dsf checkpoint, or is damaged .*{key}") as refusal:
        load_checkpoint(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("unit", None), ("unit", "x"), ("offset", [[1.0]]), ("step", [0.0] * 15), ("step", [1.0]), ("bits", "8")],
)
def test_a_wrong_codec_is_refused_on_load(checkpoint: Checkpoint, field: str, value: Any) -> None:
    path = rewritten(checkpoint, lambda header: header["codec"].update({field: value}))
    with pytest.raises(UserError, match=rf"{path} is no dsf checkpoint"):
        load_checkpoint(path)
    path = rewritten(checkpoint, lambda header: header["codec"].pop(field))
    with pytest.raises(UserError, match=rf"{path} is no dsf checkpoint.*{field}"):
        load_checkpoint(path)


def test_a_wrong_model_or_quantization_names_file_and_field(checkpoint: Checkpoint) -> None:
    path = rewritten(checkpoint, lambda header: header["model"].update(attention="softmax"))
    with pytest.raises(UserError, match=rf"{path}: model\.attention is 'softmax': use one of pssa, tssa"):
        load_checkpoint(path).build_model()
    path = rewritten(checkpoint, lambda header: header.update(quantization={"bits": 4, "widths": 3}))
    with pytest.raises(UserError, match=rf"{path}: the header's quantization does not fit.*widths"):
        load_checkpoint(path).build_model()


def test_another_format_is_named(checkpoint: Checkpoint) -> None:
    path = rewritten(checkpoint, lambda header: header.update(format=7))
    with pytest.raises(UserError, match=r"has checkpoint format 7, this dsf reads 1"):
        load_checkpoint(path)


def test_a_negative_variance_is_refused_with_the_tensors_name(checkpoint: Checkpoint) -> None:
    name = "model.blocks.0.mlp.expand_norm.batch.running_var"
    checkpoint.tensors[name][2] = -1e-3
    save_checkpoint(checkpoint.path, checkpoint.tensors, checkpoint.header)
    with pytest.raises(UserError, match=rf"tensor {name.removeprefix('model.')} is negative"):
        load_checkpoint(checkpoint.path).build_model()
