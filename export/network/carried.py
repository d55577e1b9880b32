"""What a network carries beside its nodes, JSON that anybody may write: where it comes from, what was proven of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dsf.export.network.nodes import NetworkError
from dsf.shell.errors import UserError
from dsf.shell.typed_values import read_record

REMEDY = "export the network again"


@dataclass(frozen=True)
class _Rung:
    """One proof of the ladder, see :class:`dsf.export.proof.rungs.Rung`."""

    name: str = ""
    passed: bool | None = None
    summary: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Placement:
    """Of the populations on cores; only its chip is ever read back."""

    chip: str | None = None


@dataclass(frozen=True)
class _Verification:
    """What commands read of a network's verification; more may be there."""

    rungs: list[_Rung] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    placement: _Placement | None = None


@dataclass(frozen=True)
class _Dataset:
    """That a network was trained on."""

    id: str | None = None


@dataclass(frozen=True)
class _Provenance:
    """What commands read of a network's provenance; more may be there."""

    dataset: _Dataset | str | None = None
    train_steps: int | None = None
    train_revision: str | None = None
    faults: list[Any] = field(default_factory=list)


def require_carried(provenance: Any, verification: Any) -> None:
    """Check what commands rely on.

    Args:
        provenance: of a network file.
        verification: of a network file.

    Raises:
        NetworkError: naming the field that is of another type than dsf-export writes.
    """
    try:
        read_record(_Provenance, provenance, "network: provenance", REMEDY)
        read_record(_Verification, verification, "network: verification", REMEDY)
    except UserError as error:
        raise NetworkError(str(error)) from None
