"""The allocator's thresholds: their effect is counted in page faults, in a process of its own."""

import os
import platform
import subprocess
import sys

import pytest

PAGES, ARRAYS, TIMES = 1024, 8, 50  # arrays of 4 MiB: below the largest heap block; eight are more than glibc keeps
PROGRAM = f"""
import resource
import numpy as np
import pytest
from dsf.shell.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({TIMES}):
        held = [np.ones({PAGES} * 512) for _ in range({ARRAYS})]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
as_it_was = faults()
found = keep_freed_memory()
faults()
print(int(found), as_it_was, faults())
"""


@pytest.mark.slow
def test_arrays_that_come_and_go_fetch_their_pages_once() -> None:
    environment = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}  # small pages, so that each of them is counted
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment)
    found, as_it_was, kept = (int(count) for count in done.stdout.split())
    assert bool(found) == (platform.libc_ver()[0] == "glibc")
    if found:
        assert as_it_was > TIMES  # some of the arrays anew, each time
        assert kept * 20 < as_it_was
