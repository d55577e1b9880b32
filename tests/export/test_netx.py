"""The .net file: what is refused, and that netx, loaded by real Lava, fires the reference's spikes."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsf.export.conversion.fold import fold
from dsf.export.conversion.quantize import quantize
from dsf.export.network.network import Network
from dsf.export.network.nodes import LIF, Gate, NetworkError, Synapses
from dsf.export.network.reference import ReferenceEngine, fire, integer_product, shift
from dsf.export.targets.netx_file import RESET_OFFSET, DenseStage, dense_stages, netx_weights, write_net
from dsf.shell.errors import UserError
from dsf.testing.random_networks import exportable, random_model, random_network, random_tokens
from dsf.train.quantization.layers import bias_parts

QKV, EXPAND = "blocks.0.attention.qkv", "blocks.0.mlp.expand"
LAVA_SECONDS = 200
RUN_IN_LAVA = """
import sys
from pathlib import Path
import numpy as np
from lava.lib.dl.netx import hdf5
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.proc.io.sink import RingBuffer as Sink
from lava.proc.io.source import RingBuffer as Source

for path in sorted(Path(sys.argv[1]).glob("*.net")):
    spikes, offset = np.load(path.with_suffix(".spikes.npy")), int(sys.argv[2])
    steps = len(spikes) + 1
    network = hdf5.Network(net_config=str(path), reset_interval=int(path.stem.split("-")[1]), reset_offset=offset)
    source = Source(data=np.vstack([spikes, np.zeros_like(spikes[:1])]).T)
    sink = Sink(shape=network.out.shape, buffer=steps)
    source.s_out.connect(network.inp)
    network.out.connect(sink.a_in)
    try:
        network.run(condition=RunSteps(num_steps=steps), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
        np.save(path.with_suffix(".out.npy"), sink.data.get().T[1:])
    finally:
        network.stop()
"""


def whole_network(seed: int = 0, bits: int = 8, **sizes: Any) -> Network:
    return quantize(fold(random_model(seed, **sizes)), "hopper", bits, whole_biases=True)


def with_nodes(network: Network, *nodes: Synapses | LIF) -> Network:
    new = {node.name: node for node in nodes}
    return dataclasses.replace(network, nodes=tuple(new.get(node.name, node) for node in network.nodes))


def stage_of(network: Network, name: str) -> DenseStage:
    return next(stage for stage in dense_stages(network) if stage.name == name)


def with_stage(network: Network, name: str, **changes: Any) -> Network:
    """The network with fields of one stage changed: weights and exponent of the synapses, else of the LIF."""
    stage = stage_of(network, name)
    of_synapses = {field: value for field, value in changes.items() if field in ("weights", "exponent")}
    of_lif = {field: value for field, value in changes.items() if field not in of_synapses}
    return with_nodes(
        network, dataclasses.replace(stage.synapses, **of_synapses), dataclasses.replace(stage.lif, **of_lif)
    )


@settings(max_examples=25, deadline=None)
@given(sizes=exportable(largest_width=6))
def test_every_stage_between_spikes_is_found(sizes: dict[str, Any]) -> None:
    network = random_network(**sizes)
    wanted = [f"blocks.{block}.mlp.expand" for block in range(sizes["blocks"])]
    if sizes["attention"] != "none":
        wanted = [name for block in range(sizes["blocks"]) for name in (f"blocks.{block}.attention.qkv", wanted[block])]
    found = dense_stages(network)
    assert [stage.name for stage in found] == wanted
    assert all(stage.lif.source == stage.name for stage in found)
    assert all(isinstance(network[stage.synapses.source], (LIF, Gate)) for stage in found)


def test_layout(tmp_path: Path) -> None:
    network, path = whole_network(), tmp_path / "x.net"
    stage = stage_of(network, QKV)
    write_net(network, QKV, path)
    with h5py.File(path) as file:
        assert {name: file.attrs[name] for name in ("stage", "neurons", "reset_interval", "reset_offset")} == {
            "stage": QKV,
            "neurons": stage.lif.name,
            "reset_interval": network.ticks,
            "reset_offset": RESET_OFFSET,
        }
        assert list(file["layer"]) == ["0", "1"]
        assert [file[f"layer/{index}/type"][0] for index in (0, 1)] == [b"input", b"dense"]
        assert [file[f"layer/{index}/shape"][0] for index in (0, 1)] == [12, 36]
        assert np.array_equal(file["layer/1/weight"][()], stage.synapses.weights)
        assert np.array_equal(file["layer/1/bias"][()] * 64, stage.lif.bias)
        assert np.array_equal(file["layer/1/neuron/vThMant"][()], stage.lif.threshold)
        assert file["layer/1/neuron/vDecay"][()] == stage.lif.decay


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "fractional bias": (
        {"bias_mantissa": np.r_[np.full(5, 64), np.full(31, 65)].astype(np.int16), "bias_exponent": 0},
        "qkv_lif' for netx: 31 of 36 biases are no whole synaptic units; export with --whole-biases",
    ),
    "large bias": ({"bias_mantissa": np.full(36, 4095, np.int16), "bias_exponent": 7}, "a bias is 8190"),
    "silent": ({"weights": np.zeros((36, 12), np.int8)}, "qkv' for netx: all its weights are 0"),
    "wide": ({"weights": np.full((36, 12), 64, np.int8), "exponent": 2}, "reach 256 to 256"),
    "wide down": ({"weights": np.full((36, 12), -65, np.int8), "exponent": 2}, "reach -260 to -260"),
    "rounded": ({"exponent": -1}, r"rounded after \* 2\*\*-1"),
    "altered by netx": ({"weights": np.full((36, 12), -8, np.int8)}, "the smallest is -8: netx alters"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_netx_cannot_say_is_refused(case: str, tmp_path: Path) -> None:
    changes, message = REFUSED[case]
    network = with_stage(whole_network(), QKV, **changes)
    with pytest.raises(NetworkError, match=message) as found:
        write_net(network, QKV, tmp_path / "x.net")
    assert "\n" not in str(found.value) and list(tmp_path.iterdir()) == []


def test_stages_that_do_not_exist_and_places_that_cannot_be_written(tmp_path: Path) -> None:
    network = whole_network(blocks=1)
    with pytest.raises(NetworkError, match=f"no dense stage 'embed' .*choose one of {QKV}, {EXPAND}"):
        write_net(network, "embed", tmp_path / "x.net")
    with pytest.raises(UserError, match="does not exist"):
        write_net(network, QKV, tmp_path / "nowhere" / "x.net")
    assert list(tmp_path.iterdir()) == []


def test_sums_that_are_shifted_right_without_a_remainder_are_folded() -> None:
    node = Synapses("s", "x", np.array([[4, -8], [12, 0]], np.int8), -2)
    assert netx_weights(node).tolist() == [[1, -2], [3, 0]]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), bits=st.integers(2, 8))
def test_whole_biases_are_the_nearest_whole_units(seed: int, bits: int) -> None:
    network = whole_network(seed, bits, width=6, blocks=1)
    for node in network.of_kind(LIF):
        assert not (node.bias % 64).any()
    generator = np.random.default_rng(seed)
    bias = np.clip(generator.normal(0, generator.uniform(0.1, 3000), 9), -8190, 8190)
    mantissa, exponent = bias_parts(bias, "x", whole=True)
    assert exponent >= 6 and np.abs(mantissa * 2.0**exponent / 64 - bias).max() <= 2.0**exponent / 128
    assert (exponent == 6) == (np.abs(bias).max() <= 4095)


def test_whole_biases_do_not_move_thresholds_or_weights_and_overflow_with_a_name() -> None:
    fine, whole = random_network(0), whole_network(0)
    for name in (QKV, EXPAND):
        one, other = stage_of(fine, name), stage_of(whole, name)
        assert np.array_equal(one.synapses.weights, other.synapses.weights)
        assert np.array_equal(one.lif.threshold, other.lif.threshold)
        assert 0 < np.abs(one.lif.bias - other.lif.bias).max() <= 32 + 8  # half a whole unit, half a fine one
    with pytest.raises(UserError, match=r"blocks\.7\.x has a folded bias of 1e\+04"):
        bias_parts(np.array([1e4]), "blocks.7.x", whole=True)


def lava_cases() -> dict[str, tuple[Network, str]]:
    """Networks and stages that differ in all that netx's arithmetic depends on."""
    plain, generator = whole_network(3, width=10), np.random.default_rng(0)
    shape = (30, 10)
    rails = generator.choice([-4095, 4095, 0, 700, -700], 30).astype(np.int16)
    return {
        "mixed": (plain, QKV),
        "expand": (whole_network(4, width=7, ticks=3, decay=0.5), EXPAND),
        "folded": (whole_network(1, bits=4, width=6), QKV),
        "positive": (with_stage(plain, QKV, weights=generator.integers(0, 100, shape).astype(np.int8)), QKV),
        "negative": (with_stage(plain, QKV, weights=-generator.integers(1, 100, shape).astype(np.int8)), QKV),
        "not positive": (with_stage(plain, QKV, weights=-generator.integers(0, 4, shape).astype(np.int8)), QKV),
        "nine bits": (with_stage(plain, QKV, exponent=1), QKV),
        "biases at the rails": (
            with_stage(plain, QKV, bias_mantissa=rails, threshold=generator.integers(1, 9000, 30).astype(np.int32)),
            QKV,
        ),
        "one tick": (whole_network(5, width=5, ticks=1), EXPAND),
        "long memory": (whole_network(6, width=9, ticks=6, decay=0.875), QKV),
        "own decays": (whole_network(6, width=9, ticks=4, learn_decays=True), QKV),
    }


def run_lava(folder: Path) -> None:
    """Run every .net file of a folder in a process group of its own, which is gone afterwards whatever happens."""
    command = [sys.executable, "-W", "ignore", "-c", RUN_IN_LAVA, str(folder), str(RESET_OFFSET)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    try:
        output, _ = child.communicate(timeout=LAVA_SECONDS)
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        raise
    assert child.returncode == 0, output


def stage_spikes(network: Network, stage: DenseStage, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What the stage reads in a stream of tokens, then random spikes; and what it fires: (ticks of all tokens, n)."""
    engine, read, fired = ReferenceEngine(network), [], []
    for token in random_tokens(network, 6, 1, seed):
        values: dict[str, np.ndarray] = {}
        engine.step_graded(token, values.__setitem__)
        read.append(values[stage.synapses.source][:, 0])
        fired.append(values[stage.lif.name][:, 0])
    generator = np.random.default_rng(seed)
    for density in (0.1, 0.3, 0.5, 0.7, 0.9, 0.0, 1.0):
        spikes = (generator.random((network.ticks, stage.synapses.weights.shape[1])) < density).astype(np.int64)
        currents = shift(integer_product(spikes, stage.synapses.weights), stage.synapses.exponent)
        read.append(spikes)
        fired.append(fire(stage.lif, currents))
    return np.concatenate(read), np.concatenate(fired)


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 11), reason="Lava is frozen on Python 3.10")
def test_netx_in_lava_fires_the_references_spikes(tmp_path: Path) -> None:
    wanted = {}
    for index, (case, (network, name)) in enumerate(lava_cases().items()):
        path = tmp_path / f"{index:02d}-{network.ticks}.net"
        spikes, wanted[case, path] = stage_spikes(network, stage_of(network, name), seed=index)
        write_net(network, name, path)
        np.save(path.with_suffix(".spikes.npy"), spikes)
    run_lava(tmp_path)
    fractions = []
    for (case, path), fired in wanted.items():
        found = np.load(path.with_suffix(".out.npy"))
        assert found.shape == fired.shape and np.array_equal(found, fired), case
        fractions.append(fired.mean())
    assert min(fractions) > 0 and max(fractions) < 1
