"""How many spike slots all tests together have compared with the reference, engine by engine."""

from __future__ import annotations

from collections import Counter

EXPECTED = 10_000_000
"""What a run of the whole suite has to reach."""


class SpikeTally:
    """Adds up over a session; ``conftest.py`` prints it at the end.

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

    def line(self) -> str:
        """The summary."""
        parts = ", ".join(f"{engine} {count:,}" for engine, count in sorted(self.compared.items()))
        return (
            f"spikes compared with the reference: {parts}; {self.compared.total():,} in all, {self.mismatches} differ"
        )


TALLY = SpikeTally()
