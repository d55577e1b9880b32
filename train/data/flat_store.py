"""A dataset's episodes laid end to end in flat .npy files, which training maps into memory instead of reading.

The files are derived from a Minari dataset and may be deleted at any time. A store is a directory named after a
fingerprint of its source. It is written under another name and renamed when it is whole, and it is believed only while

- its metadata are signed with a key that this user alone has (:mod:`dsf.train.data.user_places`), together with the
  fingerprint: a store that came with a dataset, or belonged to another one, is built again;
- they agree with the state of every file in it: size, inode, and the times of its last change, of which one
  (``st_ctime``) no program can set;
- it is this user's directory, and no link. Links and other people's directories are left alone, for another place.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from dsf.shell.arrays import Float32Array, FloatArray, Int64Array
from dsf.shell.errors import UserError
from dsf.shell.scratch_directory import temporary_directory
from dsf.train.data.user_places import cache_key
from dsf.train.quantization.codec import summarise_parts

FORMAT = 3
"""Raise it with every change to what the files hold: stores of another format are built again."""
METADATA_NAME = "metadata.json"
SIGNATURE_NAME = "signature"
LOCK_NAME = "lock"
LARGEST_METADATA = 1 << 16
"""Bytes of a store's metadata; they take about 1,000."""
ARRAY_NAMES = ("tokens", "actions", "starts", "returns", "summaries")


class DamagedStore(Exception):
    """A store is missing, incomplete or altered: build it (again)."""


@dataclass(frozen=True)
class FlatEpisodes:
    """Some episodes, end to end, as they go into the files.

    Attributes:
        tokens: (steps of all, features).
        actions: (steps of all, action_size).
        lengths: (episodes,), steps of each, none of them zero.
        returns: (episodes,) sums of the rewards (reward units).
        out_of_range: steps whose action leaves [-1, 1].
        source: the arrays that define the episodes' content, in the order in which they are hashed.
    """

    tokens: Float32Array
    actions: Float32Array
    lengths: Int64Array
    returns: FloatArray
    out_of_range: int
    source: Sequence[npt.NDArray[Any]]


@dataclass(frozen=True)
class FlatStore:
    """A store that was found whole; the arrays are read-only maps of its files.

    Attributes:
        content_hash: SHA-256 over all episodes' source arrays.
        out_of_range: steps whose action leaves [-1, 1].
        tokens: (steps, features).
        actions: (steps, action_size).
        starts: (episodes + 1,) index of each episode's first step, closed by the number of steps.
        returns: (episodes,) sums of rewards (reward units).
        summaries: (episodes, 4, features), see :func:`dsf.train.quantization.codec.summarise_parts`.
    """

    content_hash: str
    out_of_range: int
    tokens: Float32Array
    actions: Float32Array
    starts: Int64Array
    returns: FloatArray
    summaries: FloatArray


class ArrayFile:
    """A .npy file that grows along its first axis; its header is written last, when the length is known."""

    def __init__(self, path: Path, row_shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        self.file: BinaryIO = path.open("wb")
        self.row_shape, self.dtype, self.rows = row_shape, np.dtype(dtype), 0
        self.write_header()
        self.first_row = self.file.tell()

    def write_header(self) -> None:
        """Write the header for the present number of rows; numpy leaves room in it for any length."""
        shape = (self.rows, *self.row_shape)
        descr = np.lib.format.dtype_to_descr(self.dtype)
        np.lib.format.write_array_header_1_0(self.file, {"descr": descr, "fortran_order": False, "shape": shape})

    def append(self, rows: npt.ArrayLike) -> None:
        """Append (count, *row_shape)."""
        values = np.ascontiguousarray(rows, self.dtype)
        self.file.write(values.data)
        self.rows += len(values)

    def finish(self) -> None:
        """Write the final header and wait until the disk has the file: a rename must not overtake its content."""
        self.file.seek(0)
        self.write_header()
        assert self.file.tell() == self.first_row
        self.file.flush()
        os.fsync(self.file.fileno())


def write_store(directory: Path, batches: Iterable[FlatEpisodes], features: int, action_size: int) -> None:
    """Write the episodes, one batch after the other, into an empty directory.

    Raises:
        OSError: the place cannot be written, or is full.
    """
    digest = hashlib.sha256()
    out_of_range = 0
    with contextlib.ExitStack() as stack:

        def array_file(name: str, row_shape: tuple[int, ...], dtype: type[np.generic]) -> ArrayFile:
            array = ArrayFile(directory / f"{name}.npy", row_shape, dtype)
            stack.callback(array.file.close)
            return array

        tokens = array_file("tokens", (features,), np.float32)
        actions = array_file("actions", (action_size,), np.float32)
        starts = array_file("starts", (), np.int64)
        returns = array_file("returns", (), np.float64)
        summaries = array_file("summaries", (4, features), np.float64)
        for batch in batches:
            for source in batch.source:
                digest.update(source.tobytes())
            starts.append(tokens.rows + np.cumsum(batch.lengths) - batch.lengths)
            tokens.append(batch.tokens)
            actions.append(batch.actions)
            returns.append(batch.returns)
            summaries.append(summarise_parts(batch.tokens, batch.lengths))
            out_of_range += batch.out_of_range
        starts.append([tokens.rows])
        for array in (tokens, actions, starts, returns, summaries):
            array.finish()
    metadata = {
        "content_hash": digest.hexdigest(),
        "out_of_range": out_of_range,
        "files": {name: own_file_state(directory / f"{name}.npy") for name in ARRAY_NAMES},
    }
    with (directory / METADATA_NAME).open("w") as file:
        json.dump({**metadata, "checksum": checksum(metadata)}, file)
        file.flush()
        os.fsync(file.fileno())


def file_state(path: Path) -> list[int]:
    """What changes whenever a file does: size in bytes, times of modification and of change in nanoseconds, inode.

    Raises:
        OSError: it is missing, or no file.
    """
    return _state(path.stat(), path)


def own_file_state(path: Path) -> list[int]:
    """The same of a file that is no link.

    Raises:
        OSError: it is missing, or no file.
    """
    return _state(path.lstat(), path)


def _state(found: os.stat_result, path: Path) -> list[int]:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{path} is no file")
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def checksum(values: Any) -> str:
    """SHA-256 of plain JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def open_store(directory: Path) -> FlatStore:
    """Map a store into memory.

    Raises:
        DamagedStore: it is missing, incomplete or altered.
    """
    try:
        metadata = json.loads(_content(directory / METADATA_NAME))
        if metadata.pop("checksum") != checksum(metadata):
            raise DamagedStore(f"{directory}: {METADATA_NAME} was altered")
        for name, state in metadata["files"].items():
            if own_file_state(directory / f"{name}.npy") != state:
                raise DamagedStore(f"{directory}: {name}.npy was altered")
        # A plain view of the map indexes faster than numpy's memmap class, and keeps it alive.
        arrays = {name: np.load(directory / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in ARRAY_NAMES}
        store = FlatStore(content_hash=metadata["content_hash"], out_of_range=metadata["out_of_range"], **arrays)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedStore(f"{directory}: {error}") from None
    if not is_consistent(store):
        raise DamagedStore(f"{directory}: its arrays do not fit together")
    return store


def is_consistent(store: FlatStore) -> bool:
    """Whether the arrays' lengths agree, so that no index can lead out of them."""
    steps, episodes = len(store.tokens), len(store.returns)
    return (
        len(store.actions) == steps
        and len(store.summaries) == episodes
        and len(store.starts) == episodes + 1
        and store.starts[0] == 0
        and store.starts[-1] == steps
        and bool((np.diff(store.starts) > 0).all())
    )


def _content(path: Path) -> bytes:
    """A small file's content.

    Raises:
        OSError: it is missing, a link, no file, or larger than any of ours.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe must not keep anybody waiting
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST_METADATA:
            raise OSError(f"{path} is none of ours")
        return file.read(LARGEST_METADATA)


def signature(directory: Path, fingerprint: str) -> bytes:
    """What only this user can compute of a store's metadata and of the source that they belong to.

    Raises:
        OSError: there are no metadata.
    """
    text = fingerprint.encode() + b"\n" + _content(directory / METADATA_NAME)
    return hmac.new(cache_key(), text, hashlib.sha256).hexdigest().encode()


def _sign(directory: Path, fingerprint: str) -> None:
    with (directory / SIGNATURE_NAME).open("wb") as file:
        file.write(signature(directory, fingerprint))
        file.flush()
        os.fsync(file.fileno())


def require_own_directory(path: Path) -> None:
    """Refuse a directory that is a link, or another user's, whose stores must not be removed.

    Some file systems give everything to one user, whoever makes it: then what is made in the directory has its owner.

    Raises:
        OSError: it is missing, a link, no directory, or another user's.
    """
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise OSError(f"{path} is a link, or no directory")
    if found.st_uid != os.geteuid():
        with temporary_directory(".owner-", path) as made:
            if os.lstat(made).st_uid != found.st_uid:
                raise OSError(f"{path} is another user's directory")


def find_store(place: Path, fingerprint: str) -> FlatStore | None:
    """The whole store of this fingerprint in ``place``, if there is one that this user has made."""
    directory = place / fingerprint
    try:
        require_own_directory(place)
        if directory.is_symlink():
            return None
        if not hmac.compare_digest(_content(directory / SIGNATURE_NAME), signature(directory, fingerprint)):
            return None
        return open_store(directory)
    except (OSError, DamagedStore):
        return None


def obtain_store(what: str, places: Sequence[Path], fingerprint: str, write: Callable[[Path], None]) -> FlatStore:
    """Open the store of this fingerprint, or build it in the first of ``places`` that can be written.

    Args:
        what: the dataset, for messages.
        places: directories that hold the stores of one dataset each, best first.
        fingerprint: names source and format.
        write: fills the empty directory that it is given.

    Raises:
        UserError: no place can be written, or ``write`` finds the data wrong.
    """
    for place in places:
        store = find_store(place, fingerprint)
        if store is not None:
            return store
    failures = []
    for place in places:
        try:
            return build_store(place, fingerprint, write)
        except OSError as error:
            failures.append(f"{place}: {error.strerror or error}")
    raise UserError(
        f"{what}: no place for its flat files ({'; '.join(failures)}): "
        "free some space, or set XDG_CACHE_HOME to a directory that can be written"
    )


def build_store(place: Path, fingerprint: str, write: Callable[[Path], None]) -> FlatStore:
    """Build a store under a lock; it replaces every other store in ``place``.

    A process that waited for another one's lock finds that one's store and takes it.

    Raises:
        OSError: the place cannot be written, or is full.
    """
    place.mkdir(parents=True, exist_ok=True)
    require_own_directory(place)
    with locked(place / LOCK_NAME):
        store = find_store(place, fingerprint)
        if store is not None:
            return store
        # Nobody else builds here now, so what is left is outdated, damaged, or of a process that was killed.
        # Who has an old store mapped keeps it: the system frees a deleted file with its last map.
        for left_over in place.iterdir():
            if left_over.is_symlink():
                left_over.unlink()
            elif left_over.is_dir():
                shutil.rmtree(left_over)
        partial = place / f".{fingerprint}.partial"
        partial.mkdir()
        try:
            write(partial)
            _sign(partial, fingerprint)
            partial.rename(place / fingerprint)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        try:
            return open_store(place / fingerprint)
        except DamagedStore as error:
            raise OSError(f"it does not keep what was written ({error})") from None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that the system releases with the process, however it ends."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
