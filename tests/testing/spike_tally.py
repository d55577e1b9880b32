"""How many spike slots all tests together have compared with the reference, engine by engine."""

from __future__ import annotations

from collections import Counter
from typing import Any

from dsf.testing.lava import lava_runs_here

EXPECTED = 200_000_000 if lava_runs_here() else 175_000_000
"""What a run of the whole suite has to reach; Lava's share is missing where it does not run."""


class SpikeTally:
    """Adds up over a session, over all of its workers; ``conftest.py`` prints it at the end.

    Attributes:
        compared: spike slots (population x neuron x tick) per engine, fired or not.
        mismatches: slots that differed, over all engines.
    """

    def __init__(self) -> None:
        self.compared: Counter[str] = Counter()
        self.mismatches = 0

    def add(self, engine: str, compared: int, mismatches: int = 0) -> None:
        """Note one comparison with the reference."""
        self.compared[engine] += compared
        self.mismatches += mismatches

    def falls_short(self) -> bool:
        """Whether this is too little for the whole suite, or anything differed."""
        return self.compared.total() < EXPECTED or self.mismatches > 0

    def as_plain(self) -> dict[str, Any]:
        """What another process can add to its own."""
        return {"compared": dict(self.compared), "mismatches": self.mismatches}

    def add_plain(self, other: dict[str, Any]) -> None:
        """Add another process's :meth:`as_plain`; nothing where it is empty."""
        self.compared.update(other.get("compared", {}))
        self.mismatches += other.get("mismatches", 0)

    def line(self) -> str:
        """The summary."""
        parts = ", ".join(f"{engine} {count:,}" for engine, count in sorted(self.compared.items()))
        return (
            f"spikes compared with the reference: {parts}; {self.compared.total():,} in all, {self.mismatches} differ"
        )


TALLY = SpikeTally()
