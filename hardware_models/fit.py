"""Whether a network fits some chips, and if not: which limits keep it from that, by how much, and what would help."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from dsf.export.network.network import Network
from dsf.export.placement.chips import Chip, Figure
from dsf.export.placement.placement import LIMITED_QUANTITIES, place
from dsf.hardware_models.work import Delay, longest_delay

ADVICE = {
    "neurons": "train a narrower network",
    "synapse_bits": "export with fewer bits (--bits), or train a narrower network",
    "input_axons": "train a narrower network",
    "output_axons": "train a narrower network: its layers reach fewer cores",
    "thresholds": "export with one scale per layer (--no-per-channel)",
    "decays": "train without --model.learn-decays",
}
"""What relieves each limit."""
LIFTED = Figure(None, None, "lifted, to see what else binds")


@dataclass(frozen=True)
class Fit:
    """Cores that a network needs, and what would spare how many.

    Attributes:
        chip: title.
        chips: on which it is to fit.
        cores: that are available there.
        needed: cores.
        needed_chips: chips.
        without: cores that would do without a limit, for each limit that costs any; the costliest first.
        shared: cores that would do if populations shared cores.
        delay: longest of a message, in the pipeline.
        most_delay: ticks that the chip can hold one back; None where that is not published.
    """

    chip: str
    chips: int
    cores: int
    needed: int
    needed_chips: int
    without: dict[str, int]
    shared: int
    delay: Delay
    most_delay: int | None

    @property
    def fits(self) -> bool:
        """Whether the cores suffice, and every message can be held back as long as it must."""
        return self.needed <= self.cores and not self.delayed_too_long

    @property
    def delayed_too_long(self) -> int:
        """Ticks beyond what the chip can hold back."""
        return 0 if self.most_delay is None else max(self.delay.ticks - self.most_delay, 0)

    def lines(self) -> list[str]:
        """In words; what would help only where the network does not fit, one line per limit."""
        found = f"{self.needed} of {self.cores} cores on {self.chips} chip(s) of {self.chip}"
        if self.fits:
            return [f"fits: {found} suffice"]
        lines = []
        if self.delayed_too_long:
            lines.append(
                f"does not fit: '{self.delay.source}' to '{self.delay.target}' has to be held back for "
                f"{self.delay.ticks} ticks, {self.delayed_too_long} more than the {self.most_delay} of {self.chip}: "
                "train with fewer ticks per token, or with pssa, which does not wait for all of them"
            )
        if self.needed <= self.cores:
            return lines
        times = self.needed / self.cores
        lines.append(f"does not fit: {found}, {times:.2g} times as many: use {self.needed_chips} chips")
        for name, cores in self.without.items():
            words = name.replace("_", " ")
            lines.append(f"{words} per core: without this limit {cores} cores would do: {ADVICE[name]}")
        if self.shared < self.needed:
            lines.append(f"populations that share cores: {self.shared} cores would do")
        return lines


def fit(network: Network, chip: Chip, chips: int = 1, share_cores: bool = False) -> Fit:
    """Count the cores that a network needs, with every limit and without each.

    Raises:
        NetworkError: a single neuron exceeds a core, so no number of chips helps; the message names limit and neuron.
    """

    def cores(relaxed: Chip, shared: bool = share_cores) -> int:
        return len(place(network, relaxed, shared).cores)

    lifted: list[tuple[str, Any]] = [(name, {f"{name}_per_core": LIFTED}) for name in LIMITED_QUANTITIES]
    placement = place(network, chip, share_cores)
    needed = len(placement.cores)
    without = {name: cores(dataclasses.replace(chip, **limit)) for name, limit in lifted}
    helping = sorted((count, name) for name, count in without.items() if count < needed)
    return Fit(
        chip=chip.title,
        chips=chips,
        cores=chips * (chip.cores.value or needed),
        needed=needed,
        needed_chips=placement.chips,
        without={name: count for count, name in helping},
        shared=cores(chip, shared=True),
        delay=longest_delay(network),
        most_delay=chip.delay_ticks.value,
    )
