"""Sealed HDF5: behind a 512-byte user block that holds the SHA-256 of all that follows, so every altered byte is seen.

``/header`` is JSON text; what else there is depends on the kind of file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
import numpy.typing as npt

from dsf.shell.errors import UNREADABLE, UserError
from dsf.shell.file_values import parse_json, read_bytes
from dsf.shell.files import replacing
from dsf.shell.hdf5_image import hdf5_image
from dsf.shell.hdf5_reading import ReadLimits, open_image, require_self_contained
from dsf.shell.plain_text import plain, shown

USER_BLOCK_BYTES = 512
HEADER = "header"
VERSION_LINE = re.compile(rb"\nformat (\d{1,9})\n")
HEX_DIGITS = 64
"""Hexadecimal digits of a SHA-256."""
LARGEST_HEADER = 1 << 22
"""Bytes of a header's text."""

Content = TypeVar("Content")


@dataclass(frozen=True)
class Seal:
    """One kind of sealed file.

    Attributes:
        magic: its first bytes; ends with a line break.
        noun: what a message calls it.
        version: of the format that is written.
        readable: versions that are read.
        make: how to get a good one, where there is none.
        remake: how to get a good one again.
        limits: what is taken from one file.
        error: what a file that breaks the seal raises.
        glance: refuses a header by which nothing else need be looked at.
    """

    magic: bytes
    noun: str
    version: int
    readable: tuple[int, ...]
    make: str
    remake: str
    limits: ReadLimits
    error: type[UserError]
    glance: Callable[[dict[str, Any]], None] = lambda _header: None

    def user_block(self, body: bytes, version: int | None = None) -> bytes:
        """Magic, digest, version, then zeros: every byte is determined, so any flipped one is seen."""
        stated = self.version if version is None else version
        text = self.magic + hashlib.sha256(body).hexdigest().encode() + f"\nformat {stated}\n".encode()
        return text.ljust(USER_BLOCK_BYTES, b"\0")

    def write(
        self, path: Path, header: dict[str, Any], fill: Callable[[h5py.File], None], version: int | None = None
    ) -> None:
        """Write a file whole or not at all; the same content gives the same bytes.

        Args:
            path: to write.
            header: JSON values; the format is added.
            fill: puts the rest into the open file.
            version: of the format, where an older one says all that there is; None is the newest.

        Raises:
            OSError: the directory cannot be written, or the disk is full.
        """

        def fill_all(file: h5py.File) -> None:
            text = json.dumps({"format": version or self.version, **header}, sort_keys=True).encode()
            file.create_dataset(HEADER, data=np.frombuffer(text, np.uint8))
            fill(file)

        body = hdf5_image(fill_all, userblock_size=USER_BLOCK_BYTES, libver="latest")
        with replacing(path) as temporary, temporary.open("wb") as written:
            written.write(self.user_block(body, version))
            written.write(body)

    def read(self, path: Path, build: Callable[[h5py.File, dict[str, Any]], Content]) -> Content:
        """What an intact file holds.

        Args:
            path: to read.
            build: makes the content of the open file and its header.

        Raises:
            UserError: of type ``error``, naming the file: it is missing, of another kind or version, altered or cut
                short, or ``build`` cannot make sense of it.
        """
        content, version = self._intact(path)
        try:
            with open_image(content) as file:
                header = self._header(file, version)
                self.glance(header)
                require_self_contained(file, len(content), self.limits, self.remake)
                return build(file, header)
        except UserError as error:
            raise self.error(f"{path}: {error}") from None
        except UNREADABLE as error:
            told = plain(" ".join(str(error).split())) or type(error).__name__
            raise self.error(f"{path}: content is no {self.noun} of this version ({told}): {self.remake}") from None

    def _intact(self, path: Path) -> tuple[bytes, int]:
        """All bytes of a file, and the version of its format."""
        try:
            content = read_bytes(path, self.noun, self.limits.expanded)
        except UserError as error:
            raise self.error(str(error)) from None
        except OSError as error:
            raise self.error(f"cannot read {self.noun} {path}: {error.strerror}") from None
        if not content.startswith(self.magic) or len(content) <= USER_BLOCK_BYTES:
            raise self.error(f"{path} is no dsf {self.noun}, or is truncated: {self.make}")
        return content, self._require_intact(content, path)

    def _require_intact(self, content: bytes, path: Path) -> int:
        """The version that a file's user block states, if the block fits what follows."""
        stated = VERSION_LINE.search(content, 0, USER_BLOCK_BYTES)
        version = int(stated.group(1)) if stated else 0
        if stated and version not in self.readable:
            known = ", ".join(map(str, self.readable[:-1]))
            known = f"{known} and {self.readable[-1]}" if known else str(self.readable[-1])
            raise self.error(f"{path} has format {version}, this dsf reads {known}: update dsf, or {self.remake}")
        if content[:USER_BLOCK_BYTES] != self.user_block(content[USER_BLOCK_BYTES:], version):
            raise self.error(f"{path}: SHA-256 does not match, the file was altered or cut short: {self.remake}")
        return version

    def _header(self, file: h5py.File, version: int) -> dict[str, Any]:
        """The header, if it states the version that the user block does."""
        text = bytes(self.read_array(file, HEADER, np.uint8, LARGEST_HEADER))
        header = parse_json(text, HEADER)
        if not isinstance(header, dict):
            raise self.error(f"{HEADER}: it holds no names and values: {self.remake}")
        if header["format"] != version or isinstance(header["format"], bool):
            stated = f"header: format is {shown(header['format'])}, the user block says {version}"
            raise self.error(f"{stated}: {self.remake}")
        return header

    def digest(self, path: Path) -> str:
        """The SHA-256 that the user block states, in hexadecimal."""
        with path.open("rb") as file:
            return file.read(len(self.magic) + HEX_DIGITS)[len(self.magic) :].decode()

    def read_array(
        self, group: h5py.Group, name: str, expected: type[np.generic], largest: int | None = None
    ) -> npt.NDArray[Any]:
        """One array, after a look at what it claims to be: whoever seals a file anew may put anything in it.

        Args:
            group: of the file.
            name: of the array in it.
            expected: type of its numbers.
            largest: how many there may be; None is what the file may have in any array.

        Raises:
            UserError: of type ``error``: it lies elsewhere, has another type, or is larger than any such file's.
        """
        where = f"{group.name}/{name}"
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise self.error(f"{where} is a link out of the file: {self.remake}")
        stored = group[name]
        if not isinstance(stored, h5py.Dataset) or stored.external or stored.is_virtual:
            raise self.error(f"{where} holds no data of its own: {self.remake}")
        if stored.dtype != expected:
            raise self.error(f"{where} has dtype {stored.dtype}, expected {np.dtype(expected)}: {self.remake}")
        limit = self.limits.numbers if largest is None else largest
        if stored.size > limit:
            raise self.error(f"{where} claims {stored.size:,} numbers, limit {limit:,}: {self.remake}")
        values: npt.NDArray[Any] = stored[()]
        return values
