"""Build C kernels with the machine's compiler, once, and load them through ctypes.

Kernels with OpenMP share torch's thread pool: they are linked against no OpenMP runtime, and find the one that torch
has loaded already. Two runtimes in one process would let two pools of threads spin against each other.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import multiprocessing
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from dsf.shell.files import flush_to_disk
from dsf.shell.scratch_directory import scratch_directory, temporary_directory

FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
COMPILER_TIMEOUT_S = 120.0
CACHE_MODE = 0o700
LIBRARY_MODE = 0o700
OTHERS_MAY_WRITE = 0o022
DIGEST_DIGITS = 32
SMALLEST_ROOM = 4 << 20
"""Bytes; a compiler that fails on a disk with less may have failed for want of them."""
BUILD_PREFIX = ".build-"
"""How the directories of a compiler at work are called."""


class KernelsUnavailable(Exception):
    """The kernels cannot be built here; the message says why in one line."""


class NoPlaceForKernels(KernelsUnavailable):
    """The compiler works, and there is no directory from which its work can be loaded."""


@dataclass(frozen=True)
class KernelSource:
    """C code that ships in a package.

    Attributes:
        package: import name of the package.
        files: names of its files; the first is compiled, the others are included by it.
        threads: whether loops run on torch's threads, where torch is loaded.
        flags: for the compiler, behind the usual ones, which they may take back.
    """

    package: str
    files: tuple[str, ...]
    threads: bool = False
    flags: tuple[str, ...] = ()


LIF_KERNELS = KernelSource(__package__, ("lif_kernels.c", "lif_typed.h"), threads=True)


def load_kernels(source: KernelSource = LIF_KERNELS) -> ctypes.CDLL:
    """Compile (or find) the shared library and load it; a compiler that failed is not asked again.

    Raises:
        KernelsUnavailable: no C compiler, or the compiler failed, or no directory from which code may be loaded.
    """
    found = _library_or_reason(source, os.environ.get("CC") or "cc")
    if isinstance(found, KernelsUnavailable):
        raise type(found)(str(found))  # a new one: each keeps its own traceback
    return found


@functools.cache
def _library_or_reason(source: KernelSource, compiler: str) -> ctypes.CDLL | KernelsUnavailable:
    """The kernels as this compiler builds them, or why it cannot."""
    try:
        return _obtain(source, compiler)
    except KernelsUnavailable as error:
        return error
    except OSError as error:  # such as a temporary directory that is full, too
        return NoPlaceForKernels(f"the kernels could not be stored or loaded: {' '.join(str(error).split())}")


def _obtain(source: KernelSource, command: str) -> ctypes.CDLL:
    name, *options = command.split() or [command]  # such as CC="gcc -m64"
    program = shutil.which(name)
    if program is None:
        raise KernelsUnavailable(f"no C compiler '{command}' on the PATH: install one, or name it in CC")
    compiler = [program, *options]
    openmp = _openmp_of_torch() if source.threads else None
    flags = (*FLAGS, *source.flags, "-c", *(["-fopenmp"] if openmp else []))
    texts = {file: (resources.files(source.package) / file).read_text() for file in source.files}
    version = _run([*compiler, "--version"]).partition("\n")[0]
    key = hashlib.sha256(repr((texts, options, flags, version, _processor())).encode()).hexdigest()[:16]
    if openmp:
        ctypes.CDLL(openmp, mode=ctypes.RTLD_GLOBAL)  # already mapped: this only makes its symbols visible
    stem, refused = f"{Path(source.files[0]).stem}-{key}", ""
    for directory in (_cache_directory(), _own_directory()):
        with directory as place:
            if isinstance(place, str):
                refused = place
                continue
            for library in sorted(place.glob(f"{stem}-*.so")):
                if (found := _load(library, stem)) is not None:
                    return found
            try:
                library = _compile(compiler, flags, texts, place, stem)
            except (OSError, KernelsUnavailable) as error:
                if isinstance(error, KernelsUnavailable) and shutil.disk_usage(place).free > SMALLEST_ROOM:
                    raise
                reason = getattr(error, "strerror", None) or "its disk is full"
                refused = f"the kernels cannot be stored in {place} ({reason})"
                continue
            if (found := _load(library, stem)) is not None:
                if refused:
                    _say_once(f"note: {refused}: every command compiles again")
                return found
            refused = f"{place} does not allow execution (mounted noexec?)"
    raise NoPlaceForKernels(f"{refused}: set XDG_CACHE_HOME to a directory of yours that has room and allows it")


def _load(library: Path, stem: str) -> ctypes.CDLL | None:
    """Load a library that only this user (and root) can have written, and that is as it was written; None otherwise, or
    where it is for another kind of machine, or where its directory does not allow it.

    Its name ends with a hash of its content: one that was cut short does not have its own name any more. A process that
    has mapped such a file dies with SIGBUS, and no line says why. What was checked is what is loaded: by its handle, so
    that nobody can put another file in its place meanwhile.
    """
    try:
        handle = os.open(library, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    if _is_whole(handle, library.stem.removeprefix(f"{stem}-")):
        held = Path(f"/proc/self/fd/{handle}")
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(held if held.exists() else library))  # handle stays: it is the library's name now
    os.close(handle)
    return None


def _is_whole(handle: int, digest: str) -> bool:
    found = os.fstat(handle)
    if not (stat.S_ISREG(found.st_mode) and _is_private(found)):
        return False
    with open(handle, "rb", closefd=False) as file:
        return hashlib.sha256(file.read()).hexdigest()[:DIGEST_DIGITS] == digest


def _is_private(found: os.stat_result) -> bool:
    """Whether nobody but this user (and root) can have written a file or directory: its code is about to run."""
    return found.st_uid in (os.geteuid(), 0) and not found.st_mode & OTHERS_MAY_WRITE


def use_torch_threads() -> bool:
    """Whether the kernels run on torch's threads; else they run on the calling one."""
    return _openmp_of_torch() is not None


def _openmp_of_torch() -> str | None:
    """Path of the GNU OpenMP runtime in this process (torch brings one), if there is one."""
    maps = Path("/proc/self/maps")
    text = os.fsdecode(maps.read_bytes()) if maps.exists() else ""  # names of files need not be UTF-8
    found = re.findall(r"(/.*libgomp.*)", text)  # its path may hold spaces
    return found[0] if found else None


def _processor() -> str:
    """What -march=native depends on: a cache on a shared home directory may serve several machines."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*:.*$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found.group() if found else platform.processor()


@contextlib.contextmanager
def _cache_directory() -> Iterator[Path | str]:
    """~/.cache/dsf (XDG_CACHE_HOME is honoured); or why it cannot be used: not written, or written by others, too."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dsf"
        root.mkdir(parents=True, exist_ok=True, mode=CACHE_MODE)
        is_private = _is_private(root.stat())
    except (OSError, RuntimeError):  # RuntimeError: a user without a home directory
        yield "there is no place for kernels"
        return
    if not is_private:
        yield f"{root} belongs to another user, or others can write to it"
    else:
        yield root if os.access(root, os.W_OK) else f"{root} cannot be written"


@contextlib.contextmanager
def _own_directory() -> Iterator[Path]:
    """One for this process alone; a loaded library needs no file."""
    with temporary_directory("dsf-kernels-") as scratch:
        yield scratch


@functools.cache
def _say_once(line: str) -> None:
    if multiprocessing.parent_process() is None:  # which has said it
        print(line, file=sys.stderr, flush=True)


def _compile(compiler: list[str], flags: tuple[str, ...], texts: dict[str, str], cache: Path, stem: str) -> Path:
    """Compile in the cache and rename: processes racing for the library see a whole one or none; returns its path."""
    with scratch_directory(cache, BUILD_PREFIX) as scratch:
        for name, text in texts.items():
            (scratch / name).write_text(text)
        object_file, shared = f"{scratch}/kernels.o", scratch / "kernels.so"
        _run([*compiler, *flags, f"{scratch}/{next(iter(texts))}", "-o", object_file], scratch)
        # no -fopenmp: torch's runtime serves
        _run([*compiler, "-shared", object_file, "-o", str(shared), "-lm"], scratch)
        if not shared.exists():
            raise KernelsUnavailable(f"{compiler[0]} failed: it wrote nothing")
        shared.chmod(LIBRARY_MODE)
        flush_to_disk(shared)  # before it gets its name: a power cut must not leave half a file behind a whole name
        digest = hashlib.sha256(shared.read_bytes()).hexdigest()[:DIGEST_DIGITS]
        library = cache / f"{stem}-{digest}.so"
        shared.replace(library)
        return library


def _run(command: list[str], scratch: Path | None = None) -> str:
    """What a compiler prints; what it writes on its way goes to ``scratch``: a killed one tidies nothing."""
    environment = None if scratch is None else {**os.environ, "TMPDIR": str(scratch)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILER_TIMEOUT_S, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelsUnavailable(f"{command[0]} failed: {' '.join(str(error).split())}") from None
    if done.returncode != 0:
        raise KernelsUnavailable(f"{command[0]} failed: {(done.stderr.strip().splitlines() or ['no message'])[0]}")
    return done.stdout
