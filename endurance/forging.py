"""Files as a stranger would forge them: sound ones with one to three changes, and a checksum that is right again.

Every forger takes a sound file, writes a changed one, and needs nothing but a random generator, so that a number names
a file for ever.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml

from dsf.export.network.file import SEAL as NETWORK_SEAL
from dsf.export.network.sealed import HEADER, USER_BLOCK_BYTES, VERSION_LINE, Seal
from dsf.runtime.loop.record import SEAL as RECORDING_SEAL
from dsf.shell.errors import UNREADABLE

Generator = np.random.Generator
CANARY = "canary"
"""A file of this name is made by whoever runs what a forged file holds."""
CANARY_MODULE = "canary_import"
"""Importing it makes the canary."""
DEEP = 3_000
LONG = 200_000
LAUGHS = 9
"""Levels of ten references each."""


class Payload:
    """Unpickling this makes the canary."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return open, (CANARY, "w")


def odd_value(generator: Generator) -> Any:
    """A JSON value that hardly any field is made for."""
    nested: list[Any] = []
    for _ in range(300):
        nested = [nested]
    values: list[Any] = [
        *(None, True, False, -1, 0, 1, 2, 7, 1 << 24, 1 << 31, 1 << 63, 10**30, 10**400, -(10**12)),
        *(0.5, -1.5, 1e308, 5e-324, float("nan"), float("inf"), float("-inf")),
        *("", " ", "x", "x" * LONG, "\x1b[2J\x1b]0;mine\x07", "a\nb\r\tc", "\u202egnp.exe", "\ud800", "\u2028", "\x00"),
        *(
            "<script>alert(1)</script>",
            "$\\frac$",
            "[red]x[/nope]",
            "a|b",
            "--><!--",
            "../../up",
            "/etc/passwd",
            "%s%n",
        ),
        *(f"__import__('os').system('touch {CANARY}')", f"{CANARY_MODULE}:Env-v0", "é" * 300, "nan", "1e999"),
        *([], {}, [1], ["a"], {"a": 1}, nested, [0] * 50_000, {str(n): n for n in range(5_000)}, [[], {}], [None]),
    ]
    return values[generator.integers(len(values))]


def places(values: Any) -> list[tuple[Any, Any]]:
    """Every container among JSON values with every key or index of it."""
    found, waiting = [], [values]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], (dict, list)):
                waiting.append(holder[key])
    return found


def changed_values(values: Any, generator: Generator) -> Any:
    """JSON values with one to three changes."""
    values = copy.deepcopy(values)
    for _ in range(generator.choice([1, 1, 1, 2, 3])):
        known = places(values) if isinstance(values, (dict, list)) else []
        if not known or generator.random() < 0.03:
            return odd_value(generator)
        holder, key = known[generator.integers(len(known))]
        other, name = known[generator.integers(len(known))]
        choice = generator.integers(8)
        if choice == 0:
            del holder[key]
        elif choice == 1 and isinstance(holder, dict):
            value = odd_value(generator)
            holder[value if isinstance(value, str) else "other"] = holder.pop(key)
        elif choice == 2:
            holder[key] = [holder[key]]
        elif choice == 3 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
            holder[key] = holder[key] * int(generator.choice([-1, 2, 1_000, 1 << 24, 1 << 40]))
        elif choice == 4 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
            holder[key] += int(generator.choice([-1, 1, 2]))
        elif choice in (4, 5):
            holder[key] = copy.deepcopy(other[name])
        else:
            holder[key] = odd_value(generator)
    return values


# HDF5


def objects_of(file: h5py.File) -> list[str]:
    """Paths of everything in it."""
    found: list[str] = []
    file.visit(found.append)
    return found


def replaced(file: h5py.File, name: str, make: Callable[[h5py.Group, str], None]) -> None:
    """Put another object in the place of one."""
    parent, _, last = name.rpartition("/")
    group = file[parent] if parent else file
    del group[last]
    make(group, last)


def changed_object(file: h5py.File, name: str, generator: Generator, elsewhere: Path) -> None:
    """One object made another one."""
    old = file[name]
    values = old[()] if isinstance(old, h5py.Dataset) else np.zeros(3)
    shape, dtype = np.shape(values), getattr(values, "dtype", np.dtype("i4"))
    chunk = (1, 1 << 12)

    def put(**options: Any) -> Callable[[h5py.Group, str], None]:
        return lambda group, last: group.create_dataset(last, **options) and None

    def virtual(group: h5py.Group, last: str) -> None:
        layout = h5py.VirtualLayout((4,), dtype="f8")
        layout[:] = h5py.VirtualSource(str(elsewhere), "x", (4,))
        group.create_virtual_dataset(last, layout)

    def link(made: Any) -> Callable[[h5py.Group, str], None]:
        return lambda group, last: group.__setitem__(last, made)

    def grown(group: h5py.Group, last: str) -> None:
        size = int(generator.choice([1 << 22, 1 << 24, (1 << 24) + 1]))
        group.create_dataset(last, data=np.zeros(size, np.int8), compression="gzip", chunks=(1 << 20,))

    numbers = np.zeros(shape) if np.size(values) < LONG else np.zeros(3)
    makers: list[Callable[[h5py.Group, str], None]] = [
        put(data=numbers.astype(generator.choice(["f4", "f8", "i1", "i8", "u8", ">i4", "?", "c16"]))),
        put(data=np.full(shape, generator.choice([1, -1, 127, -128]), "i8") if shape else 5),
        put(data=np.full(shape, float(generator.choice([np.nan, np.inf, -np.inf, 1e308, 5e-324])))),
        put(data=np.reshape(values, (-1, 1)) if np.size(values) and shape else [values]),
        put(data=np.ravel(values)[: np.size(values) // 2] if shape else np.zeros((2, 2))),
        put(data=np.zeros((0, 3), dtype if dtype.kind in "iufb" else "f8")),
        put(data=h5py.Empty("f8")),
        put(shape=(1 << 20, 1 << 20), dtype="i1", chunks=chunk),
        put(shape=(1 << 15, 1 << 15), dtype="f8", chunks=chunk, fillvalue=1.0),
        put(shape=(12, 6), dtype="i1", external=[(str(elsewhere), 0, 72)]),
        put(data=np.void(pickle.dumps(Payload()))),
        put(data=["text", "\x1b[2Jtext"], dtype=h5py.string_dtype()),
        put(data=np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])),
        virtual,
        grown,
        link(h5py.ExternalLink(str(elsewhere), "/x")),
        link(h5py.SoftLink("/nowhere")),
        link(h5py.SoftLink("/")),
        link(file["/"]),
        lambda group, last: group.create_group(last) and None,
        lambda group, last: group.require_group(last).require_group("a/b/c").create_dataset("x", data=1) and None,
    ]
    replaced(file, name, makers[generator.integers(len(makers))])


def changed_attribute(file: h5py.File, generator: Generator) -> None:
    """One attribute made another one."""
    holders = [file[name] for name in objects_of(file) if len(file[name].attrs)]
    if not holders:
        return
    holder = holders[generator.integers(len(holders))]
    name = list(holder.attrs)[generator.integers(len(holder.attrs))]
    value = odd_value(generator)
    if generator.random() < 0.2:
        del holder.attrs[name]
        return
    if value is None:
        value = h5py.Empty("f4")
    elif isinstance(value, (list, dict)) or (isinstance(value, int) and abs(value) >= 1 << 63):
        value = json.dumps(value)
    elif isinstance(value, str):
        value = value.replace("\x00", "").encode("utf-8", "surrogatepass")[: 1 << 15]
    holder.attrs[name] = value


def changed_hdf5(path: Path, generator: Generator, elsewhere: Path) -> None:
    """One to three changes in an HDF5 file, user block or not."""
    with h5py.File(path, "r+") as file:
        for _ in range(generator.integers(1, 4)):
            with contextlib.suppress(*UNREADABLE):  # not every change can be made of every file
                changed_once(file, generator, elsewhere)


def changed_once(file: h5py.File, generator: Generator, elsewhere: Path) -> None:
    """One change in an open HDF5 file."""
    names = objects_of(file)
    if not names:
        return
    name, choice = names[generator.integers(len(names))], generator.integers(8)
    if choice == 0:
        del file[name]
    elif choice == 1:
        file.move(name, f"{name}x")
    elif choice == 2:
        file.require_group("more/" + "a/" * 200)
    elif choice == 3 and generator.random() < 0.1:
        for number in range(20_000):
            file.create_group(f"many/{number}")
    elif choice in (4, 5):
        changed_attribute(file, generator)
    else:
        changed_object(file, name, generator, elsewhere)


def reseal(path: Path, seal: Seal) -> None:
    """Give a changed file a fitting checksum, and the version that it had."""
    content = path.read_bytes()
    body, stated = content[USER_BLOCK_BYTES:], VERSION_LINE.search(content, 0, USER_BLOCK_BYTES)
    path.write_bytes(seal.user_block(body, int(stated.group(1)) if stated else None) + body)


def changed_header(path: Path, generator: Generator) -> None:
    """The JSON text of a sealed file's header."""
    with h5py.File(path, "r+") as file:
        header = changed_values(json.loads(bytes(file[HEADER][()])), generator)
        text = b"[" * LONG if generator.random() < 0.03 else json.dumps(header).encode()
        del file[HEADER]
        file.create_dataset(HEADER, data=np.frombuffer(text, np.uint8), compression="gzip")


def changed_node(path: Path, generator: Generator) -> None:
    """Kinds, names, sources and numbers of a network's nodes."""
    with h5py.File(path, "r+") as file:
        groups = list(file["nodes"].values())
        node, other = (groups[generator.integers(len(groups))] for _ in range(2))
        choice = generator.integers(5)
        if choice == 0:
            node.attrs["kind"] = other.attrs["kind"]
        elif choice == 1:
            value = odd_value(generator)
            node.attrs["name"] = (value if isinstance(value, str) else "x").encode("utf-8", "surrogatepass")[: 1 << 14]
        elif choice == 2:
            names = [key for key in node.attrs if key in ("source", "query", "gate", "sources")]
            for name in names:
                text = str(other.attrs["name"])
                node.attrs[name] = (
                    json.dumps([text] * int(generator.choice([1, 2, 200]))) if name == "sources" else text
                )
        else:
            numbers = [key for key in node.attrs if isinstance(node.attrs[key], (int, np.integer))]
            for name in numbers:
                if generator.random() < 0.6:
                    huge = [-1, 0, 1, 2, 3, 5, 64, 4096, 1 << 20, 1 << 24, 1 << 40, (1 << 63) - 1]
                    node.attrs[name] = int(generator.choice(huge))


def changed_weights(path: Path, generator: Generator) -> None:
    """Other numbers in the arrays of a network, most of which no rule forbids."""
    with h5py.File(path, "r+") as file:
        names = [name for name in objects_of(file["nodes"]) if isinstance(file[f"nodes/{name}"], h5py.Dataset)]
        for _ in range(generator.integers(1, 6)):
            stored = file[f"nodes/{names[generator.integers(len(names))]}"]
            if stored.dtype.kind == "u":
                changed_rows(stored.parent, stored.name.rpartition("/")[2], generator)
            elif stored.dtype.kind == "i":
                least = 1 if stored.name.endswith(("threshold", "shift")) else -60
                most = 2 if stored.name.endswith("shift") else int(generator.choice([20, 60, 127]))
                stored[...] = generator.integers(least, most + 1, stored.shape)
            else:
                stored[...] = 10.0 ** generator.uniform(-300, 300, stored.shape)


def changed_rows(group: h5py.Group, name: str, generator: Generator) -> None:
    """Columns or starts of a sparse matrix that are out of range or order, too few or too many, wide or narrow; or rows
    of another length.
    """
    values, choice = group[name][()], generator.integers(8)
    if choice == 0:
        group.attrs["inputs"] = int(generator.choice([-1, 0, 1, 5, 256, 257, 1 << 16, 1 << 17, 1 << 31, 1 << 62]))
    elif choice == 1:
        values[generator.integers(len(values))] = generator.choice([0, 1, np.iinfo(values.dtype).max])
    elif choice == 2:
        values = values[:-1]
    elif choice == 3:
        values = np.append(values, values[-1:])
    elif choice == 4:
        values = generator.permutation(values)
    elif choice == 5:
        values = values.astype(generator.choice(["u1", "u2", "u4", "u8", "i4", ">u2"]))
    elif choice == 6:
        values = np.zeros(int(generator.choice([0, 1, 2, 1 << 16, (1 << 16) + 2, 1 << 24])), values.dtype)
    else:
        values = np.sort(values)
    del group[name]
    group.create_dataset(name, data=values, compression="gzip" if values.size else None)


def forge_network(good: Path, out: Path, generator: Generator) -> None:
    """A network file."""
    shutil.copyfile(good, out)
    changes = [changed_header, changed_node, changed_weights, changed_weights]
    choice = generator.integers(len(changes) + 2)
    if choice < len(changes):
        with contextlib.suppress(*UNREADABLE):
            changes[choice](out, generator)
    elif choice == len(changes):
        changed_hdf5(out, generator, good)
    else:
        flip_bytes(out, generator)
    reseal(out, NETWORK_SEAL)


def forge_recording(good: Path, out: Path, generator: Generator) -> None:
    """A recording."""
    shutil.copyfile(good, out)
    if generator.random() < 0.5:
        changed_header(out, generator)
    else:
        changed_hdf5(out, generator, good)
    reseal(out, RECORDING_SEAL)


def forge_hdf5(good: Path, out: Path, generator: Generator) -> None:
    """Any HDF5 file without a seal."""
    shutil.copyfile(good, out)
    if generator.random() < 0.9:
        changed_hdf5(out, generator, good)
    else:
        flip_bytes(out, generator)


def flip_bytes(path: Path, generator: Generator) -> None:
    """Some bytes behind the user block."""
    content = bytearray(path.read_bytes())
    for _ in range(generator.integers(1, 20)):
        content[generator.integers(min(USER_BLOCK_BYTES, len(content) // 2), len(content))] = generator.integers(256)
    path.write_bytes(content)


# safetensors


def safetensors_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the numbers of a safetensors file."""
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def safetensors(header: Any, body: bytes) -> bytes:
    """A file of them."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def forge_checkpoint(good: Path, out: Path, generator: Generator, sealed: bool = False) -> None:
    """A checkpoint or a torch target: its metadata, its table of tensors, or their numbers."""
    header, body = safetensors_of(good.read_bytes())
    choice = generator.integers(8)
    if choice < 5:
        values = json.loads(header["__metadata__"]["dsf"])
        text = "[" * LONG if generator.random() < 0.03 else json.dumps(changed_values(values, generator))
        header["__metadata__"]["dsf"] = text
    elif choice == 5:
        tensors = {name: value for name, value in header.items() if name != "__metadata__"}
        changed = changed_values(tensors, generator)
        header = {"__metadata__": header["__metadata__"], **changed} if isinstance(changed, dict) else {"x": changed}
    elif choice == 6:
        numbers = np.frombuffer(body, np.float32).copy() if len(body) % 4 == 0 else np.zeros(4, np.float32)
        numbers[generator.integers(len(numbers), size=5)] = generator.choice([np.nan, np.inf, 1e38, -1e38, 0])
        body = numbers.tobytes()
    else:
        name = list(header)[generator.integers(len(header))]
        header["other" if generator.random() < 0.5 else name.replace("0", "7")] = header.pop(name)
    content = safetensors(header, body)
    if sealed and "dsf" in header.get("__metadata__", {}):
        content = resealed_torch(header, body, content)
    if generator.random() < 0.05:
        content = struct.pack("<Q", int(generator.choice([0, 1 << 20, 1 << 62, len(content)]))) + content[8:]
    out.write_bytes(content)


def resealed_torch(header: dict[str, Any], body: bytes, content: bytes) -> bytes:
    """A torch target with a fitting digest, where its tensors can be read at all."""
    from safetensors.numpy import load

    from dsf.export.targets.torch_module import DIGEST_KEY, HEADER_KEY, digest

    try:
        header["__metadata__"][DIGEST_KEY] = digest(header["__metadata__"][HEADER_KEY], load(content))
    except Exception:  # whatever is wrong with them: the file stays as it is
        return content
    return safetensors(header, body)


def forge_torch(good: Path, out: Path, generator: Generator) -> None:
    """A torch target."""
    forge_checkpoint(good, out, generator, sealed=True)


# ONNX


def forge_onnx(good: Path, out: Path, generator: Generator) -> None:
    """An ONNX graph."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load_model_from_string(good.read_bytes())
    graph = model.graph
    tensor = graph.initializer[generator.integers(len(graph.initializer))]
    node = graph.node[generator.integers(len(graph.node))]
    choice = generator.integers(9)
    if choice == 0:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "/etc/passwd"), ("offset", "0"), ("length", "100")):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
    elif choice == 1:
        tensor.dims[:] = [1 << 40]
    elif choice == 2:
        node.op_type = str(generator.choice(["Loop", "If", "Scan", "ConstantOfShape", "Tile", "Expand", "Nope"]))
    elif choice == 3:
        node.domain = "com.microsoft"
    elif choice == 4:
        name = graph.node[0].output[0]
        for number in range(40):
            graph.node.append(helper.make_node("Concat", [name, name], [f"twice{number}"], axis=0))
            name = f"twice{number}"
    elif choice == 5:
        del graph.node[int(generator.integers(len(graph.node)))]
    elif choice == 6:
        node.input[:] = [graph.input[0].name] * max(len(node.input), 1)
    elif choice == 7:
        value = odd_value(generator)
        model.metadata_props[0].value = value if isinstance(value, str) and "\ud800" not in value else "x"
    content = model.SerializeToString()
    if choice == 8:
        content = bytearray(content)
        content[generator.integers(len(content))] = generator.integers(256)
    out.write_bytes(bytes(content))


# Texts


def laughs() -> str:
    """A few lines that repeat one another a thousand million times."""
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, LAUGHS)]
    return "\n".join(lines) + "\n"


def forge_yaml(good: Path, out: Path, generator: Generator) -> None:
    """A sweep or a preset."""
    values = yaml.safe_load(good.read_text())
    choice = generator.integers(12)
    tag = f'!!python/object/apply:os.system ["touch {CANARY}"]'
    raw = {
        0: laughs() + good.read_text(),
        1: good.read_text() + "\nmore: &m [*m]\n",
        2: good.read_text() + f"\nmore: {tag}\n",
        3: "[" * DEEP,
        4: good.read_text() * 2,
        5: "\x00\x01\x02",
        6: f"title: {'9' * 5_000}\n" + good.read_text(),
    }
    if choice in raw:
        out.write_text(raw[choice])
        return
    found = changed_values(values, generator)
    axes = isinstance(found, dict) and isinstance(found.get("axes"), dict)
    if axes and generator.random() < 0.2:
        found["axes"] = {name: list(range(1, 2_000)) for name in ("model.ticks", "model.width", "model.blocks")}
    try:
        text = yaml.safe_dump(found)
    except (yaml.YAMLError, RecursionError, UnicodeError):
        text = json.dumps(found)
    out.write_bytes(text.encode("utf-8", "surrogatepass"))


def forge_lines(good: Path, out: Path, generator: Generator) -> None:
    """A store of results."""
    lines = [json.loads(line) for line in good.read_text().splitlines()]
    index = generator.integers(len(lines))
    lines[index] = changed_values(lines[index], generator)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    text = "[" * LONG + "\n" if generator.random() < 0.03 else text
    out.write_text(text)


def forge_npz(good: Path, out: Path, generator: Generator) -> None:
    """Arrays for an import."""
    with np.load(good) as archive:
        arrays = {name: archive[name] for name in archive.files}
    name = list(arrays)[generator.integers(len(arrays))]
    choice, old = generator.integers(8), arrays[name]
    if choice == 0:
        del arrays[name]
    elif choice == 1:
        arrays[name] = old[: len(old) // 2]
    elif choice == 2:
        arrays[name] = old.astype(generator.choice(["f2", "i8", "c8", "U3", "?", "S2"]))
    elif choice == 3:
        arrays[name] = np.full(old.shape, generator.choice([np.nan, np.inf, 1e308, -1e30]))
    elif choice == 4:
        arrays[name] = old.reshape(-1)[: len(old)] if old.ndim > 1 else np.stack([old, old], 1)
    elif choice == 5:
        arrays[name] = np.array([Payload()], dtype=object)
    elif choice == 6:
        arrays[name] = np.zeros((1 << 26, 1), np.int8)  # 64 MB that pack to 64 KB
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    data = bytearray(content.getvalue())
    if choice == 7:
        for _ in range(5):
            data[generator.integers(len(data))] = generator.integers(256)
    out.write_bytes(bytes(data))


def name_of(number: int) -> str:
    """Of a forged file."""
    return f"forged-{hashlib.sha256(str(number).encode()).hexdigest()[:8]}"
