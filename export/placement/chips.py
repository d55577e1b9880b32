"""Published limits of Loihi 1 and Loihi 2, and every way in which a network breaks them.

Each figure carries its source and a grade. A limit that nobody has published is None: it is reported as not checked,
never guessed. Capacities (what a core holds) are for :mod:`dsf.export.placement.placement`, which splits populations
until they fit; widths and kinds are checked here, because no splitting mends them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dsf.export.network.bounds import compute_bounds
from dsf.export.network.network import Network
from dsf.export.network.nodes import HISTORY_KINDS, HOST_KINDS, LIF, And, Gate, Readout, Residual, Synapses
from dsf.shell.errors import UserError
from dsf.train.quantization.integers import MEMBRANE_FRACTION_BITS

Grade = Literal["published", "vendor brief", "inferred"]
FULL_WEIGHT_BITS = 8
"""Widest stored weight; a matrix of mixed signs of this width reads as even numbers, twice the weight."""
PROGRAMMABLE_KINDS = (Residual, Gate, And, *HISTORY_KINDS)
"""Node kinds that a fixed LIF circuit cannot be: they need neurons with a program of their own."""
NOT_MODELLED = (
    "memory for neuron states, programs and the histories of attention",
    "resetting membranes once per token",
    "bandwidth of the links and of the host",
)
"""What neither :func:`violations` nor the placement looks at, on any chip."""


NO_LIMITS = (
    "synapse_word_bits",
    "synapse_header_bits",
    "synapses_per_block",
    "tiles_x",
    "tiles_y",
    "cores_per_tile",
    "delay_ticks",
)
"""Figures that nothing is compared with here: the format of the memory, the mesh, and what
:func:`dsf.hardware_models.fit` compares."""


@dataclass(frozen=True)
class Figure:
    """One limit: its value (None: not published), how good the source is, and the source."""

    value: int | None
    grade: Grade | None
    source: str


@dataclass(frozen=True)
class Chip:
    """The limits of one chip. Widths are in bits; signed quantities count their sign.

    Attributes:
        name: key of :data:`CHIPS`.
        title: for people.
        cores: neuron cores per chip.
        neurons_per_core: compartments on Loihi 1.
        synapse_bits_per_core: synaptic memory.
        synapse_word_bits: memory is handed out in words of this size.
        synapse_header_bits: what the memory spends per axon and block of synapses, beside the weights.
        synapses_per_block: largest number of synapses behind one header.
        input_axons_per_core: distinct sources that a core can listen to.
        output_axons_per_core: (neuron, destination core) pairs that a core can send to.
        thresholds_per_core: distinct thresholds.
        decays_per_core: distinct decays of the membrane.
        weight_bits: of one synapse, signed.
        weight_exponent_min: of a weight's power of two; the chip's current has 6 fractional bits below exponent 0.
        weight_exponent_max: the same, upper end.
        threshold_bits: unsigned mantissa.
        bias_mantissa_bits: signed.
        bias_exponent_bits: unsigned.
        decay_bits: unsigned.
        membrane_bits: signed.
        current_bits: signed.
        accumulator_bits: signed, of what one tick's synapses add up to (in units of the current).
        graded_bits: payload of a spike, signed; 0 means that spikes carry none.
        programmable: 1 where neurons run programs, 0 where they are a fixed circuit.
        tiles_x: columns of the mesh of tiles.
        tiles_y: rows of the mesh of tiles.
        cores_per_tile: cores that share a router.
        delay_ticks: longest time that a message can be held back; :func:`dsf.hardware_models.fit` checks it.
    """

    name: str
    title: str
    cores: Figure
    neurons_per_core: Figure
    synapse_bits_per_core: Figure
    synapse_word_bits: Figure
    synapse_header_bits: Figure
    synapses_per_block: Figure
    input_axons_per_core: Figure
    output_axons_per_core: Figure
    thresholds_per_core: Figure
    decays_per_core: Figure
    weight_bits: Figure
    weight_exponent_min: Figure
    weight_exponent_max: Figure
    threshold_bits: Figure
    bias_mantissa_bits: Figure
    bias_exponent_bits: Figure
    decay_bits: Figure
    membrane_bits: Figure
    current_bits: Figure
    accumulator_bits: Figure
    graded_bits: Figure
    programmable: Figure
    tiles_x: Figure
    tiles_y: Figure
    cores_per_tile: Figure
    delay_ticks: Figure

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """All limits with their names."""
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Figure):
                yield item.name, value

    def row_bits(self, synapses: int, weight_bits: int) -> int:
        """Synaptic memory of one input axon with this many synapses in the core.

        Where the format is published, every block of synapses pays its header and is rounded up to whole words; where
        it is not, only the weights count, which is a lower bound.
        """
        word, header, block = (
            self.synapse_word_bits.value,
            self.synapse_header_bits.value,
            self.synapses_per_block.value,
        )
        if word is None or header is None or block is None:
            return synapses * weight_bits
        whole, rest = divmod(synapses, block)
        bits = whole * _round_up(block * weight_bits + header, word)
        return bits + (_round_up(rest * weight_bits + header, word) if rest else 0)

    def sparse_row_bits(self, synapses: int, neurons: int, weight_bits: int) -> int:
        """The same for an axon that has only ``synapses`` to so many neurons: the smaller of a row that holds zeros,
        too, and one that says of each weight which neuron it belongs to.
        """
        place_bits = (neurons - 1).bit_length()
        return min(self.row_bits(neurons, weight_bits), self.row_bits(synapses, weight_bits + place_bits))

    def to_json(self) -> dict[str, Any]:
        """JSON values: every figure with grade and source."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Violation:
    """One rule of a chip that a node breaks, and how good the source of that rule is."""

    node: str
    rule: str
    found: int | str
    limit: int | str
    grade: Grade | None

    @property
    def binds(self) -> bool:
        """Whether anybody has published the limit; an inferred one is only worth a warning."""
        return self.grade != "inferred"


def _round_up(bits: int, word: int) -> int:
    """The smallest multiple of a word that holds these bits."""
    return -(-bits // word) * word


def stored_weight_bits(weights: npt.NDArray[np.integer]) -> int:
    """Width in which signed weights are stored: what the largest needs; there is no format of 7 bits."""
    needed = needed_bits(int(np.abs(weights.astype(np.int64)).max()))
    return FULL_WEIGHT_BITS if needed == FULL_WEIGHT_BITS - 1 else needed


def needed_bits(magnitude: int) -> int:
    """Signed width that holds +-magnitude."""
    return 1 + magnitude.bit_length()


def get_chip(name: str) -> Chip:
    """A chip by name.

    Raises:
        UserError: there is no such chip.
    """
    if name not in CHIPS:
        raise UserError(f"unknown chip '{name}': choose one of {', '.join(CHIPS)}")
    return CHIPS[name]


def violations(network: Network, chip: Chip) -> list[Violation]:
    """Every width or kind that a chip does not have, for all nodes at once. Empty: no known limit is broken."""
    reached = {(bound.node, bound.quantity): bound.largest for bound in compute_bounds(network)}
    found: list[Violation] = []
    for node in network.nodes:
        if isinstance(node, PROGRAMMABLE_KINDS) and chip.programmable.value == 0:
            kind, grade = type(node).__name__, chip.programmable.grade
            found.append(Violation(node.name, "programmable neurons", kind, "fixed LIF only", grade))
        if isinstance(node, Synapses):
            found += _synapse_violations(node, chip)
        elif isinstance(node, LIF):
            found += _lif_violations(node, chip, reached)
    return found + _graded_violations(network, chip, reached)


def verdict(found: Sequence[Violation], chip: Chip) -> str:
    """How many published limits are broken, in words, node by node; those that are only inferred are counted apart.

    How many limits were looked at, and how many not, stands beside it: without a figure nothing can be broken.
    """
    published = sum(violation.binds for violation in found)
    inferred = f", and {len(found) - published} inferred ones" if published < len(found) else ""
    figures = dict(chip.figures())
    binding = sum(figures[name].grade != "inferred" for name in checked(chip))
    looked_at = f"{binding} published and {len(checked(chip)) - binding} inferred ones checked"
    return f"{published} published limits broken{inferred}; {looked_at}, {len(unchecked(chip))} not checked"


def checked(chip: Chip) -> list[str]:
    """The limits that this module and the placement check: those with a figure."""
    return [name for name, figure in chip.figures() if figure.value is not None and name not in NO_LIMITS]


def unchecked(chip: Chip) -> list[str]:
    """What is not checked: limits without a published figure, and what no check models."""
    unknown = [name.replace("_", " ") for name, figure in chip.figures() if figure.value is None]
    return [*unknown, *NOT_MODELLED]


def _over(node: str, rule: str, value: int, limit: Figure) -> list[Violation]:
    """A violation where a value exceeds a known limit."""
    if limit.value is None or value <= limit.value:
        return []
    return [Violation(node, rule, value, limit.value, limit.grade)]


def _synapse_violations(node: Synapses, chip: Chip) -> list[Violation]:
    """Width and exponent. b stored bits of mixed sign read as weight << (9 - b), so the chip's exponent is 9 - b lower.

    The lower end is judged at 8 bits: narrower weights may be stored in wider formats, shifted left.
    """
    bits, lowest = stored_weight_bits(node.weights), chip.weight_exponent_min
    exponent = node.exponent - (FULL_WEIGHT_BITS + 1 - bits)
    found = _over(node.name, "weight bits", bits, chip.weight_bits)
    found += _over(node.name, "weight exponent", exponent, chip.weight_exponent_max)
    if lowest.value is not None and node.exponent - 1 < lowest.value:
        found.append(Violation(node.name, "weight exponent", node.exponent - 1, lowest.value, lowest.grade))
    return found


def _lif_violations(node: LIF, chip: Chip, reached: dict[tuple[str, str], int]) -> list[Violation]:
    current = needed_bits(reached[node.name, "current"] << MEMBRANE_FRACTION_BITS)
    mantissa = int(np.abs(node.bias_mantissa.astype(np.int64)).max())
    return [
        *_over(node.name, "threshold bits", int(node.threshold.max()).bit_length(), chip.threshold_bits),
        *_over(node.name, "bias mantissa bits", needed_bits(mantissa), chip.bias_mantissa_bits),
        *_over(node.name, "bias exponent bits", node.bias_exponent.bit_length(), chip.bias_exponent_bits),
        *_over(node.name, "decay bits", int(node.decays.max()).bit_length(), chip.decay_bits),
        *_over(node.name, "membrane bits", needed_bits(reached[node.name, "membrane"]), chip.membrane_bits),
        *_over(node.name, "current bits", current, chip.current_bits),
        *_over(node.name, "accumulator bits", current, chip.accumulator_bits),
    ]


def _graded_violations(network: Network, chip: Chip, reached: dict[tuple[str, str], int]) -> list[Violation]:
    """Payloads that are wider than a spike's, one entry per sender; the residual also sends to the readout, shifted."""
    largest: dict[str, int] = {}
    for node in network.nodes:
        if isinstance(node, HOST_KINDS):
            largest[node.name] = node.limit << int(node.shift.max())
        elif isinstance(node, Residual):
            largest[node.name] = reached[node.name, "residual"]
        elif isinstance(node, LIF) and isinstance(network[node.source], HISTORY_KINDS):
            largest[node.source] = reached[node.name, "current"]
        elif isinstance(node, Readout):
            sent = reached[node.name, "residual summed over ticks"] >> node.shift
            largest[node.source] = max(largest[node.source], sent)
    found = (_over(name, "graded spike bits", needed_bits(value), chip.graded_bits) for name, value in largest.items())
    return [violation for group in found for violation in group]


_DAVIES = "Davies et al. 2018, Loihi, IEEE Micro 38(1)"
_NENGO = "nengo-loihi 1.1 (NengoLoihi's open code for the chip)"
_LAVA = "Lava 0.10, widths annotated at Intel's own fixed-point LIF"
_BRIAN = "Michaelis et al. 2022, Brian2Loihi, Front. Neuroinform. 16"
_SANA_FE = "SANA-FE's Loihi architecture file (Boyle et al. 2025)"
_BRIEF = "Intel, Taking Neuromorphic Computing to the Next Level with Loihi 2, technology brief 2021"
_ASSUMED = "; assumed to hold for a LIF program on Loihi 2"


def _unknown() -> Figure:
    return Figure(None, None, "no published figure found")


LOIHI_1 = Chip(
    name="loihi1",
    title="Loihi 1",
    cores=Figure(128, "published", _DAVIES),
    neurons_per_core=Figure(1024, "published", f"{_DAVIES}: 1,024 compartments"),
    synapse_bits_per_core=Figure(16_384 * 64, "published", f"{_NENGO}: block.py, 16,384 words of 64 bits"),
    synapse_word_bits=Figure(64, "published", f"{_NENGO}: block.py, bits_per_axon"),
    synapse_header_bits=Figure(10, "published", f"{_NENGO}: block.py, 4 bits of format and 6 of length"),
    synapses_per_block=Figure(64, "published", f"{_NENGO}: block.py, bits_per_axon"),
    input_axons_per_core=Figure(4096, "published", f"{_NENGO}: block.py"),
    output_axons_per_core=Figure(4096, "published", f"{_NENGO}: block.py"),
    thresholds_per_core=Figure(8, "published", f"{_NENGO}: hardware/nxsdk_objects.py, threshold profiles"),
    decays_per_core=Figure(32, "published", f"{_NENGO}: hardware/nxsdk_objects.py, compartment profiles"),
    weight_bits=Figure(9, "published", f"{_DAVIES}: 1 to 9 bits"),
    weight_exponent_min=Figure(-8, "published", f"{_BRIAN}: -8 to 7"),
    weight_exponent_max=Figure(7, "published", f"{_BRIAN}: -8 to 7"),
    threshold_bits=Figure(17, "published", f"{_BRIAN}: mantissa 0 to 131,071"),
    bias_mantissa_bits=Figure(13, "published", f"{_NENGO}: builder/discretize.py, +-4,095"),
    bias_exponent_bits=Figure(3, "published", f"{_NENGO}: builder/discretize.py, 0 to 7"),
    decay_bits=Figure(12, "published", f"{_NENGO}: builder/discretize.py, 0 to 4,095"),
    membrane_bits=Figure(24, "published", f"{_NENGO}: block.py, +-(2**23 - 1)"),
    current_bits=Figure(24, "published", f"{_NENGO}: builder/discretize.py, 23 bits and sign"),
    accumulator_bits=Figure(22, "inferred", f"{_NENGO}: builder/discretize.py, 21 bits; its emulator adds a sign"),
    graded_bits=Figure(0, "published", f"{_DAVIES}: a spike is a single bit"),
    programmable=Figure(0, "published", f"{_DAVIES}: a fixed current-based LIF"),
    tiles_x=Figure(8, "published", f"{_SANA_FE}: 8 x 4 tiles of 4 cores"),
    tiles_y=Figure(4, "published", f"{_SANA_FE}: 8 x 4 tiles of 4 cores"),
    cores_per_tile=Figure(4, "published", f"{_SANA_FE}: 8 x 4 tiles of 4 cores"),
    delay_ticks=Figure(62, "published", "lava-dl 0.6 (Intel's trainer for its chips): slayer blocks, max_delay=62"),
)

LOIHI_2 = Chip(
    name="loihi2",
    title="Loihi 2",
    cores=Figure(128, "vendor brief", _BRIEF),
    neurons_per_core=Figure(8192, "vendor brief", f"{_BRIEF}: up to 8,192"),
    synapse_bits_per_core=Figure(
        128 * 1024 * 8, "vendor brief", "Intel's figure as quoted by public notes: up to 128 of a core's 192 KB"
    ),
    synapse_word_bits=_unknown(),
    synapse_header_bits=_unknown(),
    synapses_per_block=_unknown(),
    input_axons_per_core=_unknown(),
    output_axons_per_core=_unknown(),
    thresholds_per_core=_unknown(),
    decays_per_core=_unknown(),
    weight_bits=Figure(8, "vendor brief", "Intel's figure as quoted by public notes: up to 8 bits"),
    weight_exponent_min=_unknown(),
    weight_exponent_max=_unknown(),
    threshold_bits=Figure(17, "inferred", _LAVA + _ASSUMED),
    bias_mantissa_bits=Figure(13, "inferred", _LAVA + _ASSUMED),
    bias_exponent_bits=Figure(3, "inferred", _LAVA + _ASSUMED),
    decay_bits=Figure(12, "inferred", _LAVA + _ASSUMED),
    membrane_bits=Figure(24, "inferred", _LAVA + _ASSUMED),
    current_bits=Figure(24, "inferred", _LAVA + _ASSUMED),
    accumulator_bits=_unknown(),
    graded_bits=Figure(32, "vendor brief", f"{_BRIEF}: up to 32 bits (Lava's ports say 24)"),
    programmable=Figure(1, "vendor brief", f"{_BRIEF}: neurons are microcode"),
    tiles_x=_unknown(),
    tiles_y=_unknown(),
    cores_per_tile=_unknown(),
    delay_ticks=_unknown(),
)

CHIPS = {chip.name: chip for chip in (LOIHI_1, LOIHI_2)}
"""Known chips by name."""
DEFAULT_CHIP = LOIHI_2.name
"""Where a network is placed unless another chip is named."""
