"""Optional parts: named when they are missing, imported undisturbed when they are there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dsf.shell.errors import UserError
from dsf.shell.installed import are_installed, require_installed

INTERRUPTED = """
import os, signal, sys
from dsf.shell.installed import are_installed
struck = []
def strike(event, arguments):  # in the middle of the import, whatever the machine's speed
    if event == "import" and arguments[0].startswith("onnxruntime.") and not struck:
        struck.append(arguments[0])
        os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has inherited that it is ignored
sys.addaudithook(strike)
try:
    are_installed("onnxruntime", "onnx")
    print("not interrupted")
except KeyboardInterrupt:
    print("interrupted, with a whole module" if hasattr(sys.modules.get("onnxruntime"), "InferenceSession") else "half")
"""


def test_a_missing_part_is_named_with_what_brings_it() -> None:
    assert not are_installed("numpy", "no_such_part")
    with pytest.raises(UserError, match=r"needs no_such_part: install them with pip install 'dsf\[train\]'"):
        require_installed("train", "numpy", "no_such_part")


def test_a_signal_waits_until_the_import_is_whole() -> None:
    """Torn apart in the middle, an import of torch or ONNX Runtime aborts the process."""
    command = [sys.executable, "-c", INTERRUPTED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "interrupted, with a whole module"), done.stderr
