"""Files of HDF5 on a disk that fills up: one line, nothing half-written, and no crash of libhdf5 at the end."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dsf.shell.hdf5_image import hdf5_image
from dsf.testing.command_line import assert_refused, run_command
from dsf.testing.full_disk import small_files

ROOM = 2_000
"""Bytes that a file may have: less than any of these files."""
WRITE = """
import sys
from pathlib import Path
from dsf.testing.random_networks import random_model
from dsf.export.network.file import write_network
from dsf.export.conversion.fold import fold
from dsf.export.targets.netx_file import dense_stages, write_net
from dsf.export.targets.nir_graph import write_nir
from dsf.export.conversion.quantize import quantize

network, path = quantize(fold(random_model(0)), "hopper", 8, whole_biases=True), Path(sys.argv[2])
try:
    if sys.argv[1] == "network":
        write_network(network, path)
    elif sys.argv[1] == "netx":
        write_net(network, dense_stages(network)[0].name, path)
    else:
        write_nir(network, path, partial=True, source_digest="0" * 64)
except OSError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["network", "netx", "nir"])
def test_an_export_fails_with_an_error_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    directory = tmp_path / "out"
    directory.mkdir()
    path = directory / "file"
    command = [sys.executable, "-c", WRITE, kind, str(path)]
    with small_files(ROOM):
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert result.stdout == f"[Errno 27] File too large: '{path}'\n" and not list(directory.iterdir())


@pytest.mark.parametrize("name", [("maze", "--mazes", "20"), ("cartpole-expert", "--steps", "500")], ids=" ".join)
def test_a_dataset_is_refused_in_one_line(name: tuple[str, ...], minari_store: Path) -> None:
    with small_files(ROOM):
        result = run_command("dsf-data", "collect", *name)
    assert_refused(result, f"could not be written to {minari_store} (File too large): free some space there")
    assert not [path for path in minari_store.rglob("*") if path.is_file() or path.name.startswith(".")]


@pytest.mark.parametrize("options", [{"libver": "latest", "userblock_size": 512}, {"libver": ("v108", "v108")}, {}])
@pytest.mark.parametrize("arrays", [0, 1, 60])
def test_an_image_is_the_file(arrays: int, options: dict[str, Any], tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        for index in range(arrays):
            group = file.create_group(f"group {index}")
            group.create_dataset("numbers", data=np.arange(7 * index))
            group.attrs["unit"] = "ms" * index

    with h5py.File(tmp_path / "file.h5", "w", **options) as file:
        fill(file)
    assert hdf5_image(fill, **options) == (tmp_path / "file.h5").read_bytes()[options.get("userblock_size", 0) :]


def test_images_do_not_meet(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file["inner"] = np.frombuffer(hdf5_image(lambda inner: inner.create_group("alone")), np.uint8)

    image = hdf5_image(fill)
    with h5py.File(io.BytesIO(image)) as file, h5py.File(io.BytesIO(file["inner"][()].tobytes())) as inner:
        assert list(file) == ["inner"] and list(inner) == ["alone"]
