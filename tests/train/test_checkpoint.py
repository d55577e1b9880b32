"""Checkpoints whose header is damaged or of another version are refused in one line."""

from __future__ import annotations

import json
import time
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


WRONG: dict[str, tuple[Any, str]] = {
    "scores": ([{"seeds": 3}], r"scores\[0\]: seeds is 3, expected a list"),
    "best": ({"step": "x"}, "best: step is 'x', expected a whole number"),
    "dataset": ({"id": ["a"]}, r"dataset: id is \['a'\], expected text"),
    "policy": (["dsformer"], r"policy is \['dsformer'\], expected text"),
    "quantization": ({"bits": "8"}, r"quantization\.bits is '8', expected true or false"),
    "step": (-1, "step is -1, expected 0 or more"),
    "precision": (4, "precision is 4, expected text"),
    "revision": ("\x1b[2J", r"header\.revision holds control characters"),
    "rival": ([], r"rival is \[\], expected names and values"),
}


@pytest.mark.parametrize("field", WRONG)
def test_every_field_that_is_read_has_its_type(checkpoint: Checkpoint, field: str) -> None:
    value, said = WRONG[field]
    path = rewritten(checkpoint, lambda header: header.update({field: value}))
    with pytest.raises(UserError, match=f"^{path} is no dsf checkpoint, or is damaged .*{said}"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("blocks", 10**9, "model.blocks is 1000000000: it must be at most 1,024"),
        ("ticks", 1 << 24, "model.ticks is 16777216: it must be at most 1,024"),
        ("context", 1 << 24, "model.context is 16777216: it must be at most 16,384"),
        ("width", 1 << 14, r"its sizes need at least [\d,]+ parameters, and the file holds"),
        ("blocks", 1_000, r"its sizes need at least [\d,]+ parameters, and the file holds"),
        ("threshold", 10**400, "model is none of this dsf's"),
    ],
)
def test_sizes_are_held_against_the_tensors_before_anything_is_made(
    checkpoint: Checkpoint, field: str, value: int, said: str
) -> None:
    path, started = rewritten(checkpoint, lambda header: header["model"].update({field: value})), time.process_time()
    with pytest.raises(UserError, match=f"^{path}: .*{said}"):
        load_checkpoint(path).build_model()
    assert time.process_time() - started < 2.0


def test_deep_json_is_one_line(checkpoint: Checkpoint) -> None:
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    path = rewritten(checkpoint, lambda header: header.update(more=deep))
    with pytest.raises(UserError, match="header has more than 64 levels"):
        load_checkpoint(path)


@pytest.mark.parametrize("bits", [1, 40, 10**9])
def test_a_codec_of_impossible_width_is_refused(checkpoint: Checkpoint, bits: int) -> None:
    path = rewritten(checkpoint, lambda header: header["codec"].update(bits=bits))
    with pytest.raises(UserError, match=f"codec's bits is {bits}, expected 4 to "):
        load_checkpoint(path)
