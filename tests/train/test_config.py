"""Configuration of models: what a checkpoint's header may not hold."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from dsf.shell.errors import UserError
from dsf.train.config.training import ModelConfig, model_config_from_json

WRONG: dict[str, tuple[Any, ...]] = {
    "attention": ("softmax", None, 3, ["pssa"]),
    "positional_bias": ("absolute",),
    "norm": ("batch", None),
    "embed_norm": ("tdln",),
    "width": (12.0, "12", None, True, 0),
    "context": (float("inf"), -1),
    "input_bits": (8.5, 3),
    "decay": (float("nan"), "0.25", None, 1.0),
    "threshold": (float("inf"), float("nan"), 0.0),
    "attention_scale": ("1", float("nan"), float("inf")),
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_a_wrong_value_is_refused_by_name(field: str, value: Any) -> None:
    values = dataclasses.asdict(ModelConfig()) | {"attention": "tssa", field: value}
    with pytest.raises(UserError, match=rf"model\.{field} is ") as refusal:
        model_config_from_json(values)
    assert "\n" not in str(refusal.value)


def test_whole_numbers_may_stand_for_fractions() -> None:
    """JSON writes 0.0 as 0 in some hands."""
    assert ModelConfig(decay=0, key_value_offset=1).decay == 0
