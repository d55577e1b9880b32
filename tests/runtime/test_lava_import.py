"""Lava on newer Pythons: refused by default, and what the opt-in changes.

With DSF_LAVA_ON_NEWER_PYTHON=1 and lava-nc installed, all Lava tests run on Python 3.11 and newer.
"""

from __future__ import annotations

import dataclasses
import sys

import pytest

from dsf.runtime.engines.errors import BackendUnavailable
from dsf.runtime.lava_backend.newer_python import OPT_IN, _dataclass_with_hashable_encoder, make_lava_importable
from dsf.runtime.open_engine import require_lava
from dsf.testing.lava import lava_runs_here

NEWER = (3, 12)


@pytest.mark.parametrize("value", [None, "0", ""])
def test_the_refusal_is_one_line_that_names_the_option(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OPT_IN, raising=False)
    if value is not None:
        monkeypatch.setenv(OPT_IN, value)
    with pytest.raises(BackendUnavailable, match="DSF_LAVA_ON_NEWER_PYTHON=1") as refused:
        require_lava(NEWER)
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(not lava_runs_here(), reason="Lava is frozen on Python 3.10")
def test_who_asks_gets_lava_on_a_newer_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPT_IN, "1")
    require_lava(NEWER)
    from lava.magma.compiler.var_model import ByteEncoder, CoreEncoder

    assert CoreEncoder().x == ByteEncoder() != ByteEncoder(base=1)


def test_only_lavas_encoder_becomes_hashable() -> None:
    class ByteEncoder:
        pass

    ours = _dataclass_with_hashable_encoder(ByteEncoder)
    assert ours.__hash__ is None  # the name alone does not make it Lava's
    ByteEncoder.__module__ = "lava.magma.compiler.var_model"
    lavas = _dataclass_with_hashable_encoder(frozen=False)(ByteEncoder)
    assert lavas.__hash__ is object.__hash__ and dataclasses.is_dataclass(lavas)


def test_dataclasses_are_as_before() -> None:
    before = dataclasses.dataclass
    if sys.version_info < (3, 11) or lava_runs_here():
        make_lava_importable()
    assert dataclasses.dataclass is before
