"""Sealed network files that ask for more than any network are refused at a glance; large ones are not."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dsf.export.inspect import print_network
from dsf.export.network.file import DENSE_VERSION, SEAL, SPARSE_VERSION, read_network, write_network
from dsf.export.network.limits import LARGEST_CONTEXT, LARGEST_MATRIX, LARGEST_TICKS, MOST_NODES
from dsf.export.network.memory import bytes_needed, require_memory
from dsf.export.network.network import Network
from dsf.export.network.nodes import LIF, Count, Encoder, Gate, NetworkError, Readout, Residual, Synapses, Window
from dsf.export.network.sealed import USER_BLOCK_BYTES
from dsf.shell.console import table_console
from dsf.shell.errors import UserError
from dsf.testing.command_line import assert_refused, run_command
from dsf.testing.random_networks import random_network, sparser

Change = Callable[[h5py.File], Any]


@pytest.fixture
def forge(tmp_path: Path) -> Callable[..., Path]:
    """Writes a network, changes it and gives it a valid checksum."""

    def forged(change: Change, zeros: float = 0.0, **sizes: Any) -> Path:
        path = tmp_path / "forged.dsf.h5"
        network = random_network(0, **sizes)
        write_network(sparser(network, zeros) if zeros else network, path)
        with h5py.File(path, "r+", libver="latest") as file:
            change(file)
        content = path.read_bytes()
        version = SPARSE_VERSION if zeros else DENSE_VERSION
        path.write_bytes(SEAL.user_block(content[USER_BLOCK_BYTES:], version) + content[USER_BLOCK_BYTES:])
        return path

    return forged


def header(**fields: Any) -> Change:
    def change(file: h5py.File) -> None:
        values = json.loads(bytes(file["header"][()])) | fields
        del file["header"]
        file.create_dataset("header", data=np.frombuffer(json.dumps(values).encode(), np.uint8))

    return change


def attribute(index: int, **fields: Any) -> Change:
    return lambda file: file[f"nodes/{index:04d}"].attrs.update(fields)


def array(index: int, name: str, **options: Any) -> Change:
    def change(file: h5py.File) -> None:
        del file[f"nodes/{index:04d}/{name}"]
        file[f"nodes/{index:04d}"].create_dataset(name, **options)

    return change


def many_nodes(file: h5py.File) -> None:
    for number in range(len(file["nodes"]), MOST_NODES + 4):
        file["nodes"].create_group(f"{number:04d}")
    header(nodes=MOST_NODES + 4)(file)


def linked_often(file: h5py.File) -> None:
    for number in range(3, 9):
        del file[f"nodes/{number:04d}"]
        file[f"nodes/{number:04d}"] = file["nodes/0001"]


RUNG = {"name": "L2", "passed": True, "summary": "all", "details": {}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (header(ticks=1 << 24), f"ticks is 16777216, limit {LARGEST_TICKS:,}"),
        (header(context=1 << 24), f"context is 16777216, limit {LARGEST_CONTEXT:,}"),
        (header(ticks=10**30), "ticks is 1000000000000000000000000000000, limit"),
        (header(nodes=10**9), f"it has 1000000000 nodes, limit {MOST_NODES:,}"),
        (header(nodes=5), r"nodes is 5, and the file holds \d+"),
        (header(target_return=10**400), "target_return is 1000.*expected a finite number"),
        (header(verification={"rungs": [1]}), r"verification: rungs\[0\] is 1, expected names and values"),
        (
            header(verification={"rungs": [{**RUNG, "passed": []}]}),
            r"passed is \[\], expected true or false",
        ),
        (header(verification={"rungs": [{**RUNG, "name": 3}]}), r"rungs\[0\]: name is 3, expected text"),
        (header(verification={"placement": {"chip": ["loihi2"]}}), r"placement: chip is \['loihi2'\], expected text"),
        (header(provenance={"dataset": 3}), "provenance: dataset is 3, expected text"),
        (header(provenance={"x": ["\x1b[2J"]}), r"header\.provenance\.x\[0\] holds control characters"),
        (header(task="hop\u202eper"), r"header\.task holds control characters"),
        (header(x="\ud800"), r"header\.x holds control characters"),
        (many_nodes, "it has 4100 nodes, limit 4,096"),
        (linked_often, "is another name of something in the file"),
        (attribute(1, name="$\\unknown$"), r"name is '\$.*expected up to 128 letters"),
        (attribute(1, name="../../up"), "name is '../../up', expected"),
        (attribute(1, name="<b>x</b>"), "expected up to 128 letters"),
        (attribute(1, name="x\x1b[2J"), r"name is 'x\\x1b\[2J'"),
        (attribute(2, sources=json.dumps(["embed"] * 500)), "number of sources is 500, limit 64"),
        (
            array(1, "weights", shape=(1 << 16, 1 << 16), dtype="i1", chunks=(1, 1 << 16)),
            "claims 4,294,967,296 numbers",
        ),
        (array(1, "weights", data=np.zeros((1 << 17, 6), np.int8), compression="gzip"), "size is 131072, limit 65,536"),
    ],
)
def test_more_than_any_network_has_is_one_line_at_a_glance(forge: Any, change: Change, said: str) -> None:
    path, started = forge(change), time.process_time()
    with pytest.raises(NetworkError, match=said) as refusal:
        read_network(path)
    assert time.process_time() - started < 6.0
    assert str(refusal.value).startswith(f"{path}: ") and str(refusal.value).isprintable()


def rows(name: str, change: Callable[[np.ndarray], np.ndarray], inputs: int | None = None) -> Change:
    """Another array, or another length of rows, of the sparse weights of node 1: 12 rows of 6."""

    def changed(file: h5py.File) -> None:
        group = file["nodes/0001/weights"]
        values = change(group[name][()])
        del group[name]
        group.create_dataset(name, data=values)
        if inputs is not None:
            group.attrs["inputs"] = inputs

    return changed


def put(index: int, value: int) -> Callable[[np.ndarray], np.ndarray]:
    """One entry made another one."""

    def changed(values: np.ndarray) -> np.ndarray:
        values[index] = value
        return values

    return changed


def same(values: np.ndarray) -> np.ndarray:
    return values


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (rows("columns", put(3, 6)), "a column is 6, of 6 inputs"),
        (
            rows("columns", lambda columns: np.sort(columns)[::-1]),
            "the columns of a row do not ascend, or one is there",
        ),
        (rows("columns", np.zeros_like), "the columns of a row do not ascend, or one is there twice"),
        (rows("columns", lambda columns: columns[:-1]), "it has 25 values and 24 columns"),
        (rows("columns", lambda columns: columns.astype(np.uint16)), "columns has dtype uint16, expected uint8"),
        (rows("columns", same, inputs=257), "columns has dtype uint8, expected uint16"),
        (rows("starts", put(-1, 24)), "starts do not ascend from 0 to the 25 values"),
        (rows("starts", put(0, 1)), "starts do not ascend from 0 to the 25 values"),
        (rows("starts", put(5, 30)), "starts do not ascend from 0 to the 25 values"),
        (rows("starts", lambda starts: starts[:1]), "it has 0 rows of 6 inputs"),
        (rows("starts", lambda starts: starts[:-1]), "starts do not ascend from 0 to the 25 values"),
        (rows("starts", lambda starts: starts.astype(np.uint32)), "starts has dtype uint32, expected uint8"),
        (rows("starts", lambda starts: starts.reshape(1, -1)), "starts has 2 axes, expected 1"),
        (rows("values", put(2, 0)), "values holds a weight of 0"),
        (rows("values", lambda values: values.astype(np.int16)), "values has dtype int16, expected int8"),
        (rows("columns", same, inputs=-1), "it has 12 rows of -1 inputs"),
        (rows("columns", same, inputs=1 << 40), "number of inputs is 1099511627776, limit 65,536"),
        (
            rows("starts", lambda _: np.zeros(1 << 12, np.uint8), inputs=1 << 15),
            f"number of weights is 134184960, limit {LARGEST_MATRIX:,}",
        ),
        (rows("columns", same, inputs=7), "weights read 7 of 6 inputs"),
    ],
)
def test_compressed_rows_that_are_none_are_one_line(forge: Any, change: Change, said: str) -> None:
    path = forge(change, zeros=0.65)
    with pytest.raises(NetworkError, match=said) as refusal:
        read_network(path)
    assert str(refusal.value).startswith(f"{path}: ") and str(refusal.value).isprintable()


def test_many_sparse_matrices_are_no_bomb(forge: Any) -> None:
    """Each is within its limit; together they would be more than such a file may hold."""

    def change(file: h5py.File) -> None:
        found = [group for group in file["nodes"].values() if group.attrs["kind"] == "Synapses"]
        for weights in (group["weights"] for group in found):
            for name in ("values", "columns", "starts"):
                del weights[name]
            weights.attrs["inputs"] = 1 << 12
            weights.create_dataset("values", data=np.ones(1, np.int8))
            weights.create_dataset("columns", data=np.zeros(1, np.uint16))
            weights.create_dataset("starts", data=np.append(np.zeros(1 << 12, np.uint8), np.uint8(1)))

    path, before = forge(change, zeros=0.65), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(NetworkError, match="the matrices take more memory than such a file may: export it again"):
        read_network(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB


def test_a_file_of_format_2_has_no_sparse_matrices(forge: Any) -> None:
    path = forge(header(format=DENSE_VERSION), zeros=0.65)
    content = path.read_bytes()[USER_BLOCK_BYTES:]
    path.write_bytes(SEAL.user_block(content, DENSE_VERSION) + content)
    with pytest.raises(NetworkError, match="/nodes/0001/weights holds no data of its own"):
        read_network(path)


def test_a_count_of_too_many_tokens_is_refused(forge: Any) -> None:
    network = random_network(0, attention="sdsa1")
    index = next(index for index, node in enumerate(network.nodes) if isinstance(node, Count))
    with pytest.raises(NetworkError, match=r"reach is 4611686018427387904, limit 16,384"):
        read_network(forge(attribute(index, reach=1 << 62), attention="sdsa1"))


def test_arrays_that_pack_well_are_held_against_the_file(forge: Any) -> None:
    """Each array is within its limit; together they would be a hundred times the file."""

    def change(file: h5py.File) -> None:
        for number in range(6):
            file.create_dataset(f"more/{number}", data=np.zeros(1 << 24, np.int8), compression="gzip")

    path = forge(change)
    assert path.stat().st_size < 300_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(NetworkError, match=r"its arrays claim \d+,\d+,\d+ bytes, and a file of \d+,\d+ bytes may hold"):
        read_network(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def wide_network(width: int, blocks: int, ticks: int, context: int) -> Network:
    """A network of the family's shape, without training one."""
    ones = np.ones(width, np.int32)
    nodes: list[Any] = [
        Encoder("encoder", np.zeros(15), np.ones(15), np.zeros(15, np.int8), 8),
        Synapses("embed", "encoder", np.ones((width, 15), np.int8), 0),
        Residual("residual.0", ("embed",), np.zeros(width, np.int32)),
    ]
    for block in range(blocks):
        name = f"blocks.{block}"
        sparse, wide = np.zeros((3 * width, width), np.int8), np.zeros((width, width), np.int8)
        sparse[:, block], wide[:, block] = 1, 1
        zeros = np.zeros(3 * width, np.int16)
        nodes += [
            LIF(f"{name}.in", f"residual.{block}", 200 * ones, zeros[:width], 0, 2048),
            Synapses(f"{name}.qkv", f"{name}.in", sparse, 0),
            LIF(f"{name}.qkv_lif", f"{name}.qkv", np.ones(3 * width, np.int32), zeros, 0, 2048),
            Gate(f"{name}.gate", f"{name}.qkv_lif", width, 2 * width, width),
            Window(f"{name}.window", f"{name}.qkv_lif", f"{name}.gate", 0, width, np.ones(7, np.int8)),
            LIF(f"{name}.out_lif", f"{name}.window", ones, zeros[:width], 0, 2048),
            Synapses(f"{name}.out", f"{name}.out_lif", wide, 0),
            Residual(f"residual.{block + 1}", (f"residual.{block}", f"{name}.out"), np.zeros(width, np.int32)),
        ]
    head = np.zeros((3, width), np.int8)
    head[:, 0] = 1
    nodes.append(Readout("readout", f"residual.{blocks}", head, np.zeros(3, np.int32), 4, np.full(3, 1e-4)))
    return Network("hopper", ticks, context, tuple(nodes))


@pytest.mark.parametrize(("width", "blocks", "ticks", "context"), [(1024, 12, 4, 1_000), (256, 4, 64, 1_000)])
def test_large_networks_are_no_bombs(width: int, blocks: int, ticks: int, context: int, tmp_path: Path) -> None:
    """Constant weights pack a thousandfold: nothing that dsf-export writes is refused for its size."""
    network, path = wide_network(width, blocks, ticks, context), tmp_path / "wide.dsf.h5"
    write_network(network, path)
    assert [node.name for node in read_network(path).nodes] == [node.name for node in network.nodes]


def test_a_run_that_no_machine_holds_is_refused_before_it_starts() -> None:
    network = wide_network(256, 4, 1_024, 16_384)
    assert bytes_needed(network, "window", 8) > 1 << 40
    with pytest.raises(UserError, match=r"takes about .* GB in window mode for 8 episodes .*GB are free: use less"):
        require_memory(network, "window", 8, "use less")
    require_memory(random_network(0), "window", 8, "use less")


@pytest.mark.slow
def test_commands_refuse_with_one_line(forge: Any, tmp_path: Path) -> None:
    path = str(forge(header(verification={"rungs": [{"name": "L2", "passed": {}, "summary": ""}]})))
    page = ["--backend", "fast", "--no-compare", "--html", str(tmp_path / "x.html")]
    assert_refused(run_command("dsf-sim-run", path, *page), "rungs[0]: passed is {}")
    assert_refused(run_command("dsf-export", "inspect", path), "rungs[0]: passed is {}")


@pytest.mark.slow
def test_a_path_is_no_markup(tmp_path: Path) -> None:
    """A directory ``a[`` with a file ``b]``: together they look like the end of a tag."""
    folder = tmp_path / "a["
    folder.mkdir()
    name = "b].dsf.h5"
    write_network(random_network(0, features=15), folder / name)
    run = ("--backend", "fast", "--no-compare", "--parity-decisions", "1")
    result = run_command("dsf-sim-run", str(folder / name), *run)
    assert result.returncode == 0 and name in result.stdout, result.stderr
    result = run_command("dsf-export", str(folder / "b].dsf.h5"), "-o", str(folder / "d].dsf.h5"))
    assert result.returncode == 0 and "a[/d].dsf.h5: network file" in result.stdout.replace("\n", ""), result.stderr


def test_a_network_of_a_stranger_is_printed_as_it_is(forge: Any) -> None:
    """What is left of a file's texts after reading steers no terminal."""
    network = read_network(forge(header(provenance={"dataset": {"id": "[red]x[/red] | <b>"}})))
    console = table_console()
    with console.capture() as captured:
        print_network(network, console)
    assert "[red]x[/red] | <b>" in captured.get()
