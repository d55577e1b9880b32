"""What holds for every Lava process: the clock of a token, and its start flag."""

from __future__ import annotations

from dataclasses import dataclass

DENSE_TICKS = 1
"""Lava's Dense sends what it computed one tick earlier."""
CONTINUES = 0
"""Start flag of a token that continues its episode; 1 + place starts one at this place of the window."""


@dataclass(frozen=True)
class TokenClock:
    """When a population is valid: ticks [depth, depth + ticks) of every period."""

    ticks: int
    period: int
    depth: int = 0

    def at(self, depth: int) -> TokenClock:
        """The same clock at another pipeline depth."""
        return TokenClock(self.ticks, self.period, depth)

    def phase(self, time_step: int) -> int:
        """Tick within the period of Lava's time step, which starts at 1."""
        return (time_step - 1) % self.period

    def token_tick(self, time_step: int) -> int | None:
        """Tick of the token at this depth, None while the population is idle."""
        tick = self.phase(time_step) - self.depth
        return tick if 0 <= tick < self.ticks else None

    def period_ends(self, time_step: int) -> bool:
        """Whether this is the last tick of the period."""
        return self.phase(time_step) == self.period - 1

    @property
    def reset_offset(self) -> int:
        """LIFReset's parameter that clears membranes right before the first valid tick."""
        return self.depth + 1
