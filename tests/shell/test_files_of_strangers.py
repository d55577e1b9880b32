"""What readers of strangers' files stand on: HDF5 looked through, capped JSON and YAML, typed records, plain text."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pytest

from dsf.shell.errors import UserError
from dsf.shell.file_values import MOST_VALUES, parse_json, read_json, read_yaml
from dsf.shell.hdf5_reading import FREE_BYTES, ReadLimits, require_self_contained
from dsf.shell.plain_text import figure_text, markdown_text, plain, require_plain
from dsf.shell.typed_values import read_record

LIMITS = ReadLimits(objects=50, numbers=1 << 24, expanded=1 << 30, ratio=10)


def look_through(path: Path, limits: ReadLimits = LIMITS) -> None:
    with h5py.File(path, "r") as file:
        require_self_contained(file, path.stat().st_size, limits, "make it again")


def external(file: h5py.File, other: Path) -> None:
    file.create_dataset("x", (9,), "i1", external=[(str(other), 0, 9)])


def virtual(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout((3,), dtype="f8")
    layout[:] = h5py.VirtualSource(str(other), "numbers", (3,))
    file.create_virtual_dataset("x", layout)


def overlong_piece(file: h5py.File, _other: Path) -> None:
    """A thousand numbers, whose stream goes on for a hundred million."""
    stored = file.create_dataset("x", (1_000,), "i1", chunks=(1_000,), compression="gzip")
    stored.id.write_direct_chunk((0,), zlib.compress(bytes(100_000_000)))


def packed_twice(file: h5py.File, _other: Path) -> None:
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_chunk((1_000,))
    created.set_deflate(9)
    created.set_deflate(9)
    h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_INT8, h5py.h5s.create_simple((1_000,)), created)


def named(make: Callable[[h5py.Group], Any]) -> Callable[[h5py.File, Path], Any]:
    return lambda file, _other: make(file)


@pytest.mark.parametrize(
    ("forge", "said"),
    [
        (lambda file, other: file.__setitem__("x", h5py.ExternalLink(str(other), "/numbers")), "/x is a link out of"),
        (named(lambda file: file.__setitem__("x", h5py.SoftLink("/numbers"))), "/x is a link out of the file"),
        (named(lambda file: file.__setitem__("x", file["numbers"])), "another name of something"),
        (named(lambda file: file.create_group("a").__setitem__("up", file["/"])), "/a/up is another name"),
        (external, "/x holds no data of its own"),
        (virtual, "/x holds no data of its own"),
        (overlong_piece, "/x has a piece of|/x unpacks to more than the 1,000 bytes"),
        (packed_twice, "/x is packed several times over"),
        (
            named(lambda file: file.create_dataset("x", (1 << 13, 1 << 13), "i1", chunks=(1, 1 << 13))),
            "claims 67,108,864",
        ),
        (
            named(lambda file: [file.create_dataset(f"x{n}", (1 << 24,), "i1", chunks=True) for n in range(5)]),
            "bytes may hold",
        ),
        (named(lambda file: [file.create_group(f"g{n}") for n in range(60)]), "more than 50 groups"),
        (named(lambda file: file.create_dataset("x", (1 << 17,), h5py.string_dtype())), "texts"),
        (named(lambda file: file.attrs.create("x", np.zeros(9, "f8")) or file.create_group("g\x1b[2J")), None),
    ],
)
def test_what_lies_elsewhere_or_claims_too_much_is_refused(forge: Any, said: str | None, tmp_path: Path) -> None:
    other, path = tmp_path / "other.h5", tmp_path / "forged.h5"
    for place in (other, path):
        with h5py.File(place, "w") as file:
            file["numbers"] = np.arange(3.0)
    look_through(path)
    with h5py.File(path, "r+", libver="latest") as file:
        forge(file, other)
    if said is None:
        look_through(path)
        return
    with pytest.raises(UserError, match=said):
        look_through(path)


def test_what_arrays_may_take_depends_on_the_file() -> None:
    limits = ReadLimits(objects=1, numbers=1, expanded=1 << 30, ratio=10)
    assert [limits.allowed(size) for size in (1, 10_000_000, 1 << 40)] == [FREE_BYTES, 100_000_000, 1 << 30]


def test_a_pipe_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for read in (lambda path: read_json(path, "list"), lambda path: read_yaml(path, "list")):
        with pytest.raises(UserError, match=r"cannot read list .*pipe\.json: it is a device, pipe or socket"):
            read(tmp_path / "pipe.json")
    with pytest.raises(UserError, match="it is a directory"):
        read_json(tmp_path, "list")


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, f"more than {MOST_VALUES:,} values"),
        ("a: &a [*a]", "line 1 refers to itself"),
        ("[" * 5_000, "nested too deeply|below 64 levels"),
        ("a: " + "[" * 100 + "]" * 100, "below 64 levels"),
        ("a: 1\nb: 2\na: 3", "the field 'a' is there twice"),
        ("a: !!python/object/apply:os.system [ls]", "is no YAML"),
        ("a: 2020-99-99", "is no YAML"),
        ("a: " + "9" * 5_000, "is no YAML"),
        ("a: \x01", "is no YAML"),
        (b"a: \xff\xfe", "is no YAML"),
        ('a: "\\e[2J"', r"\.a holds control characters"),
        ('"a\\u202eb": 1', "holds control characters"),
        ("x" * (1 << 19), "limit 262,144"),
    ],
    ids=range(13),
)
def test_yaml_that_means_more_than_it_says_is_one_line(text: str | bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "forged.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=said) as refusal:
        read_yaml(path, "list")
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_yaml_that_repeats_itself_within_reason_is_read(tmp_path: Path) -> None:
    path = tmp_path / "good.yaml"
    path.write_text("base: &base {steps: 4, rate: 0.5}\nother: {<<: *base, steps: 8}\nnotes: |\n  two\n  lines\n")
    values = read_yaml(path, "list")
    assert values["other"] == {"steps": 8, "rate": 0.5} and values["notes"] == "two\nlines\n"


UNSHOWN = ["[" * 100_000, "{", "9" * 5_000, b"\xff\xff", '{"a": "\\ud800"}', '["\\u001b[2J"]', "[" * 70 + "]" * 70]


@pytest.mark.parametrize("text", UNSHOWN, ids=range(len(UNSHOWN)))
def test_json_that_cannot_be_shown_is_one_line(text: str | bytes) -> None:
    with pytest.raises(UserError, match=r"^list") as refusal:
        parse_json(text, "list")
    assert str(refusal.value) == plain(str(refusal.value))


@dataclass(frozen=True)
class Inner:
    kind: Literal["a", "b"]
    pair: tuple[int, float] = (0, 0.0)


@dataclass(frozen=True)
class Outer:
    count: int
    share: float
    inner: Inner
    names: list[str] = field(default_factory=list)
    by_name: dict[str, float | None] = field(default_factory=dict)
    maybe: bool | None = None
    several: tuple[int, ...] = ()


GOOD: dict[str, Any] = {"count": 3, "share": 1, "inner": {"kind": "a", "pair": [1, 2]}, "by_name": {"x": None, "y": 2}}


def test_a_record_is_what_its_dataclass_declares() -> None:
    found = read_record(Outer, {**GOOD, "unknown": object(), "several": [1, 2, 3]}, "line 1", "remove it")
    assert found == Outer(3, 1.0, Inner("a", (1, 2.0)), by_name={"x": None, "y": 2.0}, several=(1, 2, 3))
    assert isinstance(found.share, float)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"count": True}, "count is True, expected a whole number"),
        ({"count": 1.0}, "count is 1.0, expected a whole number"),
        ({"count": 1 << 63}, "count is 9223372036854775808, expected a whole number"),
        ({"share": float("nan")}, "share is nan, expected a finite number"),
        ({"share": 10**400}, "share is .*, expected a finite number"),
        ({"share": False}, "share is False"),
        ({"inner": {}}, "inner: kind is missing"),
        ({"inner": {"kind": "c"}}, "inner: kind is 'c', expected a or b"),
        ({"inner": {"kind": []}}, r"inner: kind is \[\], expected a or b"),
        ({"inner": {"kind": "a", "pair": [1, 2, 3]}}, r"inner: pair is .*expected a list of 2"),
        ({"inner": None}, "inner is None, expected names and values"),
        ({"names": "abc"}, "names is 'abc', expected a list"),
        ({"names": ["a", 1]}, r"names\[1\] is 1, expected text"),
        ({"by_name": {"x": "y"}}, r"by_name\.x is 'y', expected a finite number"),
        ({"by_name": []}, r"by_name is \[\]"),
        ({"maybe": 1}, "maybe is 1, expected true or false"),
        ({"several": [1, None]}, r"several\[1\] is None"),
    ],
)
def test_a_value_of_another_type_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"^line 1: {said}.*: remove it$"):
        read_record(Outer, {**GOOD, **change}, "line 1", "remove it")


def test_names_steer_nothing_where_they_are_shown() -> None:
    assert plain("größe 3 µs, ok") == "größe 3 µs, ok"
    assert plain("\x1b[2J\u202ea\nb\ud800") == r"\x1b[2J\u202ea\nb\ud800"
    assert markdown_text("a|b <!-- x --> [c](d)") == r"a\|b &lt;!-- x --> \[c](d)"
    require_plain({"a": ["b", {"c": 1.5}], "d": "two\nlines"}, "list", line_breaks=True)
    with pytest.raises(UserError, match=r"list\.a\[1\]\.c holds control characters"):
        require_plain({"a": ["b", {"c": "\x07"}]}, "list")


@pytest.mark.parametrize("name", [r"$\unknown$", "$", "a$b$c", "\\$x$", "$$", "50 % of 3 $"])
def test_a_picture_shows_a_name_and_no_formula(name: str, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots()
    axes.barh([figure_text(name)], [1.0])
    figure.savefig(tmp_path / "a.svg", format="svg", metadata={"Date": None})
    assert r"\mathdefault" not in axes.get_yticklabels()[0].get_text()
