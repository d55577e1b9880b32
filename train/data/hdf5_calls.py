"""libhdf5's functions without h5py's objects around them, for files of very many small groups.

h5py registers, wraps and locks every object that it touches, which takes as long as libhdf5's own work on a small one.
These are the functions of the library that h5py has loaded: a number that names an object (its handle) means the same
to both. They are called through a ``PyDLL``, which keeps Python's lock: to give it back would cost more.
"""

from __future__ import annotations

import ctypes
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

Handle = int
"""HDF5's hid_t."""
LINKS, LINK_BYTES = 5, 60
"""Room in a new group's header: this many links with names of this length (bytes), enough for an episode's links and
attributes. A header that has to grow takes a seventh more of a dataset's time."""
DEFAULT = 0
"""HDF5's H5P_DEFAULT and H5S_ALL."""

_library = ctypes.PyDLL(h5py.defs.__file__)  # a module of h5py's that needs libhdf5, which is found through it
_handle, _name, _address, _status = ctypes.c_int64, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int


def _function(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(_library, name)
    function.argtypes, function.restype = arguments, result
    return function


_create_group = _function("H5Gcreate2", _handle, _handle, _name, *[_handle] * 3)
_create_dataset = _function("H5Dcreate2", _handle, _handle, _name, *[_handle] * 5)
_create_attribute = _function("H5Acreate2", _handle, _handle, _name, *[_handle] * 4)
_write_dataset = _function("H5Dwrite", _status, *[_handle] * 5, _address)
_write_attribute = _function("H5Awrite", _status, _handle, _handle, _address)
_link = _function("H5Olink", _status, _handle, _handle, _name, _handle, _handle)
_close_group, _close_dataset, _close_attribute = (
    _function(name, _status, _handle) for name in ("H5Gclose", "H5Dclose", "H5Aclose")
)
_expect_links = _function("H5Pset_est_link_info", _status, _handle, ctypes.c_uint, ctypes.c_uint)


class GroupWriter:
    """Fills an open file; whoever uses it holds h5py's lock, ``h5py._objects.phil``.

    Every method raises RuntimeError where libhdf5 fails. What is open then, or was stored to be shared, ends with the
    file. Names are without NUL, at which libhdf5 would cut them.
    """

    def __init__(self, file: h5py.File) -> None:
        self.root: Handle = file.id.id
        self._properties = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
        _check(_expect_links(self._properties.id, LINKS, LINK_BYTES), "a group's properties")
        self._scalar = h5py.h5s.create(h5py.h5s.SCALAR)
        self._string = h5py.h5t.py_create(h5py.string_dtype(), logical=True)
        # Made once: every group has several of each, and making them takes as long as storing what they describe.
        self._shapes: dict[tuple[int, ...], h5py.h5s.SpaceID] = {}
        self._types: dict[np.dtype[Any], tuple[h5py.h5t.TypeID, h5py.h5t.TypeID]] = {}
        self._stored: dict[tuple[bytes, np.dtype[Any], tuple[int, ...], bytes], Handle] = {}

    def group(self, name: bytes) -> Handle:
        """Make a group in the file's root, to be closed with :meth:`close`."""
        return _check(_create_group(self.root, name, DEFAULT, self._properties.id, DEFAULT), name)

    def close(self, group: Handle) -> None:
        """Let go of a group."""
        _check(_close_group(group), "a group")

    def number(self, group: Handle, name: bytes, value: int) -> None:
        """Store an integer of 64 bits as an attribute."""
        self._attribute(group, name, h5py.h5t.NATIVE_INT64, ctypes.c_int64(value))

    def string(self, group: Handle, name: bytes, value: str) -> None:
        """Store a string as an attribute.

        Raises:
            ValueError: it holds a NUL, at which libhdf5 would cut it.
        """
        if "\0" in value:
            raise ValueError(f"HDF5 cannot hold the NUL in {value!r}")
        self._attribute(group, name, self._string, ctypes.c_char_p(value.encode()))

    def array(self, group: Handle, name: bytes, values: npt.NDArray[Any]) -> None:
        """Store an array as a dataset, in one piece."""
        _check(_close_dataset(self._dataset(group, name, values)), name)

    def shared(self, group: Handle, name: bytes, values: npt.NDArray[Any]) -> None:
        """Store an array as a dataset, or link the one that holds the same values for another group."""
        content = (name, values.dtype, values.shape, values.tobytes())
        dataset = self._stored.get(content)
        if dataset is None:
            self._stored[content] = self._dataset(group, name, values)
        else:
            _check(_link(dataset, group, name, DEFAULT, DEFAULT), name)

    def close_shared(self) -> None:
        """Let go of all shared arrays; later ones are stored anew."""
        for content, dataset in self._stored.items():
            _check(_close_dataset(dataset), content[0])
        self._stored.clear()

    def _dataset(self, group: Handle, name: bytes, values: npt.NDArray[Any]) -> Handle:
        shape = self._shapes.get(values.shape)
        if shape is None:
            shape = self._shapes[values.shape] = h5py.h5s.create_simple(values.shape)
        types = self._types.get(values.dtype)
        if types is None:
            made = (h5py.h5t.py_create(values.dtype, logical=True), h5py.h5t.py_create(values.dtype))
            types = self._types[values.dtype] = made
        in_file, in_memory = types
        dataset = _check(_create_dataset(group, name, in_file.id, shape.id, DEFAULT, DEFAULT, DEFAULT), name)
        content = np.ascontiguousarray(values)
        _check(_write_dataset(dataset, in_memory.id, DEFAULT, DEFAULT, DEFAULT, content.ctypes.data), name)
        return dataset

    def _attribute(self, group: Handle, name: bytes, kind: h5py.h5t.TypeID, value: ctypes._SimpleCData[Any]) -> None:
        attribute = _check(_create_attribute(group, name, kind.id, self._scalar.id, DEFAULT, DEFAULT), name)
        _check(_write_attribute(attribute, kind.id, ctypes.addressof(value)), name)
        _check(_close_attribute(attribute), name)


def _check(returned: int, what: bytes | str) -> int:
    """What a function returned, unless it failed."""
    if returned < 0:
        raise RuntimeError(f"libhdf5 could not write {what!r}")
    return returned
