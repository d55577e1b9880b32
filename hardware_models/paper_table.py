"""The energy column of the DSFormer paper's Table 1 (arXiv 2504.03800), worked out again by formula.

The paper prices multiply-accumulates (MAC) and accumulates (AC) of one decision at fp32 and nothing else, and prints
joules where only microjoules fit its own prices. The sizes behind it are inferred: what fits is one token per step and
the sizes of FCNet's D4RL command (github.com/thkkk/FCNet, readme: n_layer=4, seq_len=100, d_m=128, fno_hidden_size=512,
n_modes=10): the Decision Transformer's total and its attention part then follow to 0.5 %. The paper's own defaults
(3 blocks, 20 steps) are far from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dsf.export.network.nodes import NetworkError
from dsf.hardware_models.activity import SpikeCounter
from dsf.hardware_models.preset import load_preset

PICOJOULES_PER_MICROJOULE = 1e6
PAPER_SAVING = 1 - 88.8 / 410.5
"""The headline: 78.4 %, PSSA against the Decision Transformer."""
PARTS = ("embedding", "attention", "MLP", "head")


@dataclass(frozen=True)
class Sizes:
    """Sizes of the networks in the paper's table, as inferred."""

    steps: int = 100
    blocks: int = 4
    width: int = 128
    ticks: int = 4
    mlp_ratio: int = 4
    window: int = 8
    observations: int = 11
    actions: int = 3
    fourier_width: int = 512
    fourier_head: int = 128
    fourier_modes: int = 10

    @property
    def features(self) -> int:
        """Numbers of one token: observation, action, return-to-go."""
        return self.observations + self.actions + 1


@dataclass(frozen=True)
class Rates:
    """Spikes per neuron and tick of a DSFormer's populations, means over its blocks, and where they are from.

    ``coincidence`` is key AND value (PSSA only).
    """

    attention_input: float
    query: float
    key: float
    value: float
    coincidence: float
    attention: float
    mlp_input: float
    mlp_hidden: float
    source: str


TSSA_RATES = Rates(
    attention_input=0.3305,
    query=0.1667,
    key=0.1582,
    value=0.2134,
    coincidence=0.0,
    attention=0.3323,
    mlp_input=0.3501,
    mlp_hidden=0.1645,
    source="recorded: 1,000 closed-loop Hopper decisions of docs/results.md's TSSA on medium-expert, training seed 0 "
    "(4,000 steps, 3 blocks, K = 20), exported with 8 bits",
)
"""No TSSA network is shipped; ``dsf-bench energy-table --tssa FILE`` measures one."""


@dataclass(frozen=True)
class Operations:
    """Operations of one part of a network, per decision."""

    macs: float = 0.0
    acs: float = 0.0

    def __add__(self, other: Operations) -> Operations:
        return Operations(self.macs + other.macs, self.acs + other.acs)


@dataclass(frozen=True)
class Arithmetic:
    """Prices of one multiply-accumulate and of one accumulate, picojoules."""

    mac: float
    ac: float


@dataclass(frozen=True)
class PaperRow:
    """One network of the table.

    Attributes:
        model: name in the paper.
        parts: operations by :data:`PARTS`, or None where the paper and its sources do not give the sizes.
        published: microjoules.
        published_attention: the paper's attention part, microjoules, where it gives one.
        rates: where firing rates come from; empty without spikes.
        difference: one line on what is different.
    """

    model: str
    parts: dict[str, Operations] | None
    published: float
    published_attention: float | None
    rates: str
    difference: str

    @property
    def total(self) -> Operations:
        """All parts."""
        return sum((self.parts or {}).values(), Operations())

    def microjoules(self, arithmetic: Arithmetic, part: str | None = None) -> float | None:
        """Energy of the network or of one part; None without parts."""
        if self.parts is None:
            return None
        operations = self.total if part is None else self.parts[part]
        return (arithmetic.mac * operations.macs + arithmetic.ac * operations.acs) / PICOJOULES_PER_MICROJOULE


def paper_arithmetic() -> dict[str, Arithmetic]:
    """The paper's own fp32 prices, and 8-bit ones of the same source without a wide accumulator: 0.23 and 0.03 pJ."""
    fp32, int8 = load_preset("paper_45nm").energy_pj, load_preset("int8_45nm").energy_pj
    return {
        "fp32": Arithmetic(fp32["macs_fp32"].nominal, fp32["synaptic_events"].nominal),
        "int8": Arithmetic(int8["macs"].low, int8["synaptic_events"].low),
    }


def measured_rates(counter: SpikeCounter, source: str) -> Rates:
    """Means over the blocks of a network that ran.

    Raises:
        NetworkError: the network has no queries, keys and values.
    """
    slots = counter.tokens * counter.network.ticks
    blocks = [name.removesuffix(".qkv_lif") for name in counter.fired if name.endswith(".attention.qkv_lif")]
    if not blocks or not slots:
        raise NetworkError("this network has no attention with queries, keys and values: choose another one")

    def rate(name: Callable[[str], str], third: int | None = None) -> float:
        found = [counter.fired[name(block)] for block in blocks if name(block) in counter.fired]
        if third is not None:
            found = [fired.reshape(3, -1)[third] for fired in found]
        spikes, neurons = sum(int(fired.sum()) for fired in found), sum(fired.size for fired in found)
        return spikes / max(neurons * slots, 1)

    return Rates(
        attention_input=rate(lambda block: f"{block}.input_lif"),
        query=rate(lambda block: f"{block}.qkv_lif", 0),
        key=rate(lambda block: f"{block}.qkv_lif", 1),
        value=rate(lambda block: f"{block}.qkv_lif", 2),
        coincidence=rate(lambda block: f"{block}.coincidence"),
        attention=rate(lambda block: f"{block}.attention_lif"),
        mlp_input=rate(lambda block: block.replace(".attention", ".mlp.input_lif")),
        mlp_hidden=rate(lambda block: block.replace(".attention", ".mlp.hidden_lif")),
        source=source,
    )


def transformer_parts(sizes: Sizes) -> dict[str, Operations]:
    """A Decision Transformer with one token per step; all pairs of tokens, masked ones too."""
    tokens, square = sizes.steps, sizes.width**2
    attention = sizes.blocks * (4 * tokens * square + 2 * tokens**2 * sizes.width)
    return {
        "embedding": Operations(macs=tokens * sizes.features * sizes.width),
        "attention": Operations(macs=attention),
        "MLP": Operations(macs=sizes.blocks * 2 * sizes.mlp_ratio * tokens * square),
        "head": Operations(macs=tokens * sizes.width * sizes.actions),
    }


def fourier_parts(sizes: Sizes) -> dict[str, Operations]:
    """FCNet as its public code computes it step by step: per token, block, mode and channel one complex product for the
    sliding transform (4 MACs) and the real part of one for the way back (2); the FFN does not widen.
    """
    tokens, width = sizes.steps, sizes.fourier_width
    head = width * sizes.fourier_head + sizes.fourier_head * sizes.actions
    return {
        "embedding": Operations(macs=tokens * (sizes.observations + 1) * width),
        "attention": Operations(macs=tokens * sizes.blocks * (4 + 2) * sizes.fourier_modes * width),
        "MLP": Operations(macs=tokens * sizes.blocks * 2 * width**2),
        "head": Operations(macs=tokens * head),
    }


def spiking_parts(sizes: Sizes, rates: Rates, kind: str) -> dict[str, Operations]:
    """A DSFormer whose window is computed anew for each decision; ``kind`` is pssa or tssa.

    Products of attention are those of the release: all pairs of tokens. A spike of a query meets every token (TSSA's
    scores), one of a value every score; PSSA's B meets every coincidence of key and value.
    """
    tokens, slots = sizes.steps, sizes.steps * sizes.blocks * sizes.ticks
    per_rate, pairs = slots * sizes.width**2, slots * tokens * sizes.width
    met = rates.coincidence if kind == "pssa" else rates.query + rates.value
    return {
        "embedding": Operations(macs=tokens * sizes.features * sizes.width),
        "attention": Operations(acs=per_rate * (3 * rates.attention_input + rates.attention) + pairs * met),
        "MLP": Operations(acs=per_rate * sizes.mlp_ratio * (rates.mlp_input + rates.mlp_hidden)),
        "head": Operations(macs=tokens * sizes.width * sizes.actions),
    }


def most_possible(sizes: Sizes, arithmetic: Arithmetic) -> float:
    """Microjoules of a DSFormer with TSSA in which every neuron fires at every tick."""
    everything = Rates(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, source="")
    return PaperRow("", spiking_parts(sizes, everything, "tssa"), 0.0, None, "", "").microjoules(arithmetic) or 0.0


def paper_rows(pssa: Rates, tssa: Rates, sizes: Sizes | None = None) -> list[PaperRow]:
    """The table, in the order of the paper's rivals, then its own two."""
    sizes = sizes or Sizes()
    fp32 = paper_arithmetic()["fp32"]
    most = most_possible(sizes, fp32)
    unknown = "left out: its sizes and rates are not known here"
    return [
        PaperRow(
            "DT", transformer_parts(sizes), 410.5, 168.2, "", "sizes are inferred; softmax and biases are not counted"
        ),
        PaperRow(
            "FCNet", fourier_parts(sizes), 1022.03, None, "", "with a complex product as one MAC it is 1016.7, -0.5 %"
        ),
        PaperRow("SpikeGPT", None, 27.8, None, "", unknown),
        PaperRow("SpikeBERT", None, 806.7, None, "", f"{unknown}; at these sizes {most:.0f} uJ is the most"),
        _spiking_row("TSSA", spiking_parts(sizes, tssa, "tssa"), 96.1, 44.6, tssa, fp32),
        _spiking_row("PSSA", spiking_parts(sizes, pssa, "pssa"), 88.8, 31.0, pssa, fp32),
    ]


def _spiking_row(
    model: str, parts: dict[str, Operations], published: float, attention: float, rates: Rates, fp32: Arithmetic
) -> PaperRow:
    """The paper's firing rates are not known here: the difference is told as a factor on ours."""
    total = sum(parts.values(), Operations())
    printed = (published * PICOJOULES_PER_MICROJOULE - fp32.mac * total.macs) / fp32.ac
    difference = f"firing rates are ours; {printed / total.acs:.2f} times as high, they would give the printed figure"
    return PaperRow(model, parts, published, attention, rates.source, difference)
