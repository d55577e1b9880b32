"""Files of strangers: bombs, links out of them, what is no file; and layouts that other tools write."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from dsf.shell.errors import UserError
from dsf.testing.command_line import assert_refused, run_command
from dsf.train.data.collect import write_dataset
from dsf.train.data.dataset import load_dataset
from dsf.train.data.importing import Imported, import_file
from dsf.train.data.minari_files import METADATA_NAME
from dsf.train.data.names import FILE_NAME

STEPS = 12
ID = "test/data-v0"
GIB = 1 << 30
Arrays = dict[str, Any]


def steps() -> Arrays:
    """An episode of Hopper in D4RL's names."""
    generator = np.random.default_rng(0)
    return {
        "observations": generator.normal(size=(STEPS, 11)),
        "actions": generator.uniform(-1.0, 1.0, (STEPS, 3)),
        "rewards": np.ones(STEPS),
        "terminals": np.arange(STEPS) == STEPS - 1,
        "timeouts": np.zeros(STEPS, bool),
    }


def hdf5(path: Path, arrays: Arrays | None = None) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in (arrays or steps()).items():
            file[name] = values
    return path


def imported(path: Path) -> Imported:
    return import_file(path, "me/x-v0", "hopper", False)


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Reading must not even ask for what a bomb claims."""
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    used = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (used + GIB, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, limits)


SECRET = np.full(STEPS, 7.0)


def linked(kind: str) -> Callable[[h5py.File, Path], None]:
    """Puts rewards into a file that are another file's."""

    def put(file: h5py.File, other: Path) -> None:
        if kind == "external link":
            file["rewards"] = h5py.ExternalLink(other, "/rewards")
        elif kind == "soft link behind an external one":
            file["elsewhere"] = h5py.ExternalLink(other, "/")
            file["rewards"] = h5py.SoftLink("/elsewhere/rewards")
        elif kind == "external storage":
            offset = other.read_bytes().index(SECRET.tobytes())
            file.create_dataset("rewards", (STEPS,), "f8", external=[(other, offset, SECRET.nbytes)])
        else:
            layout = h5py.VirtualLayout((STEPS,), "f8")
            layout[:] = h5py.VirtualSource(other, "rewards", (STEPS,))
            file.create_virtual_dataset("rewards", layout)

    return put


LINKS = ["external link", "soft link behind an external one", "external storage", "virtual dataset"]


@pytest.mark.parametrize("kind", LINKS)
def test_numbers_of_another_file_are_not_read(kind: str, tmp_path: Path) -> None:
    other = hdf5(tmp_path / "other.hdf5", {"rewards": SECRET})
    path = hdf5(tmp_path / "x.hdf5")
    with h5py.File(path, "a") as file:
        del file["rewards"]
        linked(kind)(file, other)
        assert np.array_equal(file["rewards"][()], SECRET)  # libhdf5 follows
    with pytest.raises(UserError, match=r"x.hdf5: /rewards (is a link out of the file|holds no data of its own)"):
        imported(path)


HDF5_BOMBS: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "never written": (
        lambda file: file.create_dataset("rewards", (1 << 29,), "f8", chunks=(1 << 20,), compression="gzip"),
        r"claim to 4,294,968,\d\d\d bytes, and a file of [\d,]+ bytes may hold 67,108,864",
    ),
    "more numbers than any": (
        lambda file: file.create_dataset("rewards", (1 << 40,), "f8", chunks=(1 << 10,)),
        "claims 1,099,511,627,776 numbers",
    ),
    "a piece larger than the array": (
        lambda file: file.create_dataset("rewards", (STEPS,), "f8", chunks=(1 << 28,), maxshape=(None,)),
        "claim to 2,147,4",
    ),
    "packed twice": (lambda file: packed_twice(file), "is packed several times over"),
    "a false piece": (lambda file: false_piece(file), "unpacks to more than the 96 bytes that it claims"),
    "texts": (lambda file: file.create_dataset("rewards", data=np.array(["1"] * 9999, object)), "/rewards holds texts"),
    "a group": (lambda file: file.create_group("rewards"), "is no array"),
    "nothing": (lambda file: file.create_dataset("rewards", data=h5py.Empty("f8")), "is no array"),
    "large entries": (
        lambda file: file.create_dataset("rewards", (STEPS,), np.dtype(("V", 1 << 27)), chunks=(1,)),
        "claim to 1,610,6",
    ),
}


def packed_twice(file: h5py.File) -> None:
    """A dataset that two filters have gone over, each of which makes a thousandth of zeros."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((STEPS,))
    plan.set_deflate(9)
    plan.set_deflate(9)
    space = h5py.h5s.create_simple((STEPS,))
    h5py.h5d.create(file.id, b"rewards", h5py.h5t.NATIVE_DOUBLE, space, plan)


def false_piece(file: h5py.File) -> None:
    """A dataset whose only piece is half a million zeros."""
    array = file.create_dataset("rewards", (STEPS,), "f8", chunks=(STEPS,), compression="gzip")
    array.id.write_direct_chunk((0,), zlib.compress(bytes(500_000), 9))


@pytest.mark.parametrize("name", HDF5_BOMBS)
def test_hdf5_that_claims_what_it_does_not_hold_is_refused(name: str, tmp_path: Path) -> None:
    path = hdf5(tmp_path / "x.hdf5")
    with h5py.File(path, "a") as file:
        del file["rewards"]
        HDF5_BOMBS[name][0](file)
    with pytest.raises(UserError, match=f"x.hdf5: .*{HDF5_BOMBS[name][1]}") as refusal:
        imported(path)
    assert len(str(refusal.value).splitlines()) == 1


def npy(shape: str, descr: str = "'<f8'", body: bytes = bytes(8 * STEPS), version: bytes = b"\x01\x00") -> bytes:
    """An array's member, with whatever header."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    length = len(header).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + length + header + body


NPZ_BOMBS: dict[str, tuple[bytes, int, str]] = {
    "zeros": (npy("(10000000,)", body=bytes(80_000_000)), zipfile.ZIP_DEFLATED, "may hold 67,108,864"),
    "claims more": (npy("(134217728,)"), zipfile.ZIP_STORED, "may hold 67,108,864"),
    "claims a little more": (npy("(13,)"), zipfile.ZIP_STORED, "claims 104 bytes and holds 96"),
    "claims less": (npy("(11,)"), zipfile.ZIP_STORED, "claims 88 bytes and holds 96"),
    "negative": (npy("(-3, -4)"), zipfile.ZIP_STORED, "cannot be read"),
    "huge": (npy(f"({10**30},)"), zipfile.ZIP_STORED, "numbers, limit"),
    "header of gigabytes": (
        b"\x93NUMPY\x02\x00" + (1 << 31).to_bytes(4, "little") + b" " * 99,
        zipfile.ZIP_STORED,
        "cannot be read",
    ),
    "nested": (npy("(" * 4000 + ")" * 4000), zipfile.ZIP_STORED, "cannot be read"),
    "objects": (npy("(12,)", "'|O'"), zipfile.ZIP_STORED, "cannot be read .*pickle"),
    "fields": (npy("(12,)", "[('a', '<f8')]"), zipfile.ZIP_STORED, "rewards holds .*not numbers"),
    "wide": (npy("(12,)", f"'|V{1 << 26}'"), zipfile.ZIP_STORED, "may hold 67,108,864"),
    "version": (npy("(12,)", version=b"\x03\x00"), zipfile.ZIP_STORED, "npy version"),
    "no array": (b"nothing", zipfile.ZIP_STORED, "cannot be read"),
    "another packing": (npy("(12,)"), zipfile.ZIP_LZMA, "packed by method 14"),
}


@pytest.mark.parametrize("name", NPZ_BOMBS)
def test_npz_that_claims_what_it_does_not_hold_is_refused(name: str, tmp_path: Path) -> None:
    path, (member, packing, words) = tmp_path / "x.npz", NPZ_BOMBS[name]
    arrays = {key: values for key, values in steps().items() if key != "rewards"}
    np.savez(path, **arrays)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("rewards.npy", member, packing)
    with pytest.raises(UserError, match=f"x.npz.*{words}") as refusal:
        imported(path)
    assert len(str(refusal.value).splitlines()) == 1


def test_a_pipe_is_no_file_of_steps(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npz")
    with pytest.raises(UserError, match="is no file"):
        imported(tmp_path / "x.npz")


LOCK = "import sys, h5py; file = h5py.File(sys.argv[1], 'r+'); print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def held() -> Iterator[Callable[[Path], None]]:
    """Keeps a file open for writing in another process."""
    running = []

    def hold(path: Path) -> None:
        process = subprocess.Popen(
            [sys.executable, "-c", LOCK, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"

    yield hold
    for process in running:
        process.communicate("")


def test_a_locked_file_is_not_called_damaged(held: Callable[[Path], None], tmp_path: Path, minari_store: Path) -> None:
    path = hdf5(tmp_path / "x.hdf5")
    held(path)
    with pytest.raises(UserError, match="another program holds it open for writing: wait"):
        imported(path)
    directory = in_minari()
    held(directory / "data" / FILE_NAME)
    with pytest.raises(UserError, match=f"{ID}.*another program holds it open for writing: wait"):
        load_dataset(ID)


@pytest.mark.parametrize("layout", ["npz", "hdf5"])
@pytest.mark.parametrize("names", [("terminals", "timeouts"), ("terminations", "truncations")])
def test_either_layout_has_either_names_and_single_columns(layout: str, names: tuple[str, str], tmp_path: Path) -> None:
    arrays = steps()
    expected = arrays["rewards"].copy()
    arrays[names[0]], arrays[names[1]] = arrays.pop("terminals"), arrays.pop("timeouts")
    for name in ("rewards", *names):
        arrays[name] = arrays[name][:, None]
    arrays["infos/qpos"] = np.zeros((STEPS, 6))
    if layout == "npz":
        np.savez(tmp_path / "x", **arrays)
        path = tmp_path / "x.npz"
    else:
        path = hdf5(tmp_path / "x.hdf5", arrays)
    (episode,) = imported(path).episodes
    assert np.array_equal(episode.rewards, expected) and episode.terminations == [False] * (STEPS - 1) + [True]


def test_two_names_of_a_flag_must_agree(tmp_path: Path) -> None:
    arrays = steps()
    assert imported(hdf5(tmp_path / "x.hdf5", {**arrays, "terminations": arrays["terminals"]})).episodes
    arrays["terminations"] = np.arange(STEPS) == 5
    with pytest.raises(UserError, match="terminations and terminals say different things"):
        imported(hdf5(tmp_path / "y.hdf5", arrays))


def test_the_environment_s_name_is_read_as_hdf5_stores_it(tmp_path: Path) -> None:
    for value in ("Hopper-v5", np.bytes_("Hopper-v5"), np.array(["Hopper-v5"], object)):
        path = hdf5(tmp_path / "x.hdf5", {**steps(), "env_id": value})
        assert import_file(path, "me/x-v0", None, False).task == "hopper"
        path.unlink()


def in_minari() -> Path:
    """Write a genuine dataset of one episode; returns its directory."""
    episode = EpisodeBuffer(
        observations=np.zeros((STEPS + 1, 11)),
        actions=np.zeros((STEPS, 3), np.float32),
        rewards=np.ones(STEPS),
        terminations=np.arange(STEPS) == STEPS - 1,
        truncations=np.zeros(STEPS, bool),
    )
    return write_dataset(Imported(ID, "hopper", "test", [episode], ()), [episode], "test", overwrite=False)


@pytest.mark.parametrize("kind", LINKS)
def test_a_minari_dataset_takes_no_numbers_of_another_file(kind: str, minari_store: Path, tmp_path: Path) -> None:
    other = hdf5(tmp_path / "other.hdf5", {"rewards": SECRET})
    with h5py.File(in_minari() / "data" / FILE_NAME, "a") as file:
        del file["episode_0/rewards"]
        linked(kind)(file, other)
        if kind in ("external storage", "virtual dataset"):
            file["episode_0/rewards"] = file["rewards"]
        else:
            file["episode_0/rewards"] = file.get("rewards", getlink=True)
    with pytest.raises(UserError, match=f"^dataset '{ID}': /episode_0/rewards (is a link|holds no data of its own)"):
        load_dataset(ID)


@pytest.mark.parametrize("name", HDF5_BOMBS)
def test_a_minari_dataset_that_claims_what_it_does_not_hold_is_refused(name: str, minari_store: Path) -> None:
    with h5py.File(in_minari() / "data" / FILE_NAME, "a") as file:
        del file["episode_0/rewards"]
        HDF5_BOMBS[name][0](file)
        file["episode_0/rewards"] = file["rewards"]
    with pytest.raises(UserError, match=f"^dataset '{ID}'") as refusal:
        load_dataset(ID)
    assert len(str(refusal.value).splitlines()) == 1


def box(shape: list[int]) -> str:
    return json.dumps({"type": "Box", "dtype": "float64", "shape": shape, "low": -1.0, "high": 1.0})


def nested(depth: int) -> str:
    return '{"type": "Dict", "subspaces": {"a": ' * depth + box([1]) + "}}" * depth


METADATA: dict[str, tuple[Arrays, str]] = {
    "a space of gigabytes": ({"observation_space": box([10**9])}, "spaces claim 1,000,000,001 numbers"),
    "spaces in spaces": ({"observation_space": nested(30)}, "observation_space describes no space"),
    "thousands of levels": ({"observation_space": "[" * 100_000}, "observation_space describes no space"),
    "a space of text": ({"action_space": box(["3"])}, "action_space describes no space"),  # type: ignore[list-item]
    "no text": ({"action_space": 3}, "action_space is 3, expected a space written as text"),
    "no space": ({"observation_space": None}, "observation_space is None, expected a space"),
    "episodes": ({"total_episodes": 10**9}, "claims 1,000,000,000 episodes in"),
    "no number of episodes": ({"total_episodes": "many"}, "total_episodes is 'many', expected a whole number"),
    "negative": ({"total_steps": -1}, "total_steps is -1"),
    "environment's name": ({"env_spec": json.dumps({"id": ["a"]})}, r"env_spec describes no environment \(id is"),
    "environment's arguments": ({"env_spec": json.dumps({"id": "Hopper-v5", "kwargs": [1]})}, "kwargs is"),
    "environment's horizon": (
        {"env_spec": json.dumps({"id": "Hopper-v5", "max_episode_steps": "1000"})},
        "max_episode_steps is '1000'",
    ),
    "environment": ({"env_spec": "[1]"}, "env_spec describes no environment"),
    "format": ({"data_format": "pickle"}, "cannot be read"),
    "version": ({"minari_version": 5}, "cannot be read"),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_of_another_shape_are_one_line(name: str, minari_store: Path) -> None:
    path = in_minari() / "data" / METADATA_NAME
    changes, words = METADATA[name]
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError, match=f"dataset '{ID}' in .*{words}") as refusal:
        load_dataset(ID)
    assert len(str(refusal.value).splitlines()) == 1


TEXTS = {"list": "[]", "deep": "[" * 100_000, "cut": "{", "digits": "9" * 10_000, "null": "null", "bytes": "\xff"}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_metadata_that_are_no_names_and_values_are_one_line(text: str, minari_store: Path) -> None:
    (in_minari() / "data" / METADATA_NAME).write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=f"dataset '{ID}' in .*: make or download it again") as refusal:
        load_dataset(ID)
    assert len(str(refusal.value).splitlines()) == 1


def test_metadata_choose_no_code(minari_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a space, Minari would build the environment that the metadata name."""
    (tmp_path / "strange_env.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = in_minari() / "data" / METADATA_NAME
    values = json.loads(path.read_text())
    spec = {**json.loads(values["env_spec"]), "entry_point": "strange_env:Env"}
    del values["observation_space"]
    path.write_text(json.dumps({**values, "env_spec": json.dumps(spec)}))
    with pytest.raises(UserError, match="observation_space is None"):
        load_dataset(ID)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", [METADATA_NAME, FILE_NAME, "more"])
def test_a_pipe_is_no_part_of_a_dataset(name: str, minari_store: Path) -> None:
    path = in_minari() / "data" / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(UserError, match=f"{ID}.*a device, pipe or socket, not a file"):
        load_dataset(ID)


def test_lists_show_what_lies_behind_links(minari_store: Path, tmp_path: Path) -> None:
    from dsf.train.data_cli import stored

    in_minari().rename(tmp_path / "elsewhere")
    (minari_store / "mine").mkdir()
    (minari_store / "mine" / "linked-v0").symlink_to(tmp_path / "elsewhere")
    (minari_store / "round").symlink_to(minari_store)
    (minari_store / "nowhere").symlink_to(tmp_path / "nothing")
    os.mkfifo(minari_store / "mine" / "pipe")
    assert list(stored(minari_store)) == [{"dataset_id": "mine/linked-v0", "steps": STEPS, "episodes": 1}]
    assert load_dataset("mine/linked-v0").steps == STEPS


def test_a_store_s_path_need_not_be_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / os.fsdecode(b"st\xffre")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(store))
    path = in_minari()
    assert load_dataset(ID).steps == STEPS and path.parent.parent == store


@pytest.mark.slow
def test_paths_are_shown_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / os.fsdecode(b"st\xffre [b]x[/i] :smile:")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(store))
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")
    in_minari()
    result = run_command("dsf-data", "list")
    assert (result.returncode, result.stderr) == (0, "")
    assert "st\\udcffre [b]x[/i] :smile:" in result.stdout and f"{ID}: {STEPS} steps" in result.stdout
    refused = run_command("dsf-data", "info", "dsf/none-v0")
    assert_refused(refused, "dataset 'dsf/none-v0' is not in", "st\\udcffre [b]x[/i] :smile:")


def test_a_store_s_path_may_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MINARI_DATASETS_PATH", "~/sets")
    assert in_minari() == tmp_path / "sets" / ID and load_dataset(ID).steps == STEPS


def test_a_zip_of_a_million_names_is_listed_in_short(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for number in range(300):
            archive.writestr(f"a{number}\x1b[2J.npy", io.BytesIO().getvalue())
    with pytest.raises(UserError, match="lacks observations, actions") as refusal:
        imported(tmp_path / "x.npz")
    assert len(str(refusal.value)) < 1000 and "\x1b" not in str(refusal.value)
