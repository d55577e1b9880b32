"""Data parallel training through torchrun: the same as one process, and no process left when something breaks."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from dsf.testing.command_line import assert_refused
from dsf.testing.training_runs import HOPPER, TINY, UNSCORED, metrics, train_here, trained
from dsf.train.checkpoint import CHECKPOINT_NAME, load_checkpoint
from dsf.train.run_directory import LOSS

SCRIPTS = Path(sys.executable).parent
TORCHRUN = (
    str(SCRIPTS / "torchrun"),
    "--standalone",
    "--nproc-per-node",
    "2",
    "--no-python",
    str(SCRIPTS / "dsf-train"),
)
STEPS = 20
HALF_BLENDED = ("--blend-fraction", "0.5", "--precision", "fp32", "--steps", str(STEPS))
PADDED = ("--model.context", "30")
"""Windows as long as this begin before their episode in an eighth of all draws."""
TOLERANCE = 1e-5
"""Absolute, of a weight or running statistic after twenty steps. Sums over ranks round in another order than those of
one process: in float32 that left 1.2e-7 here. One share of the batch gone wrong leaves 5e-4 (a wrong weight of the rate
penalty) to 7e-2 (statistics of one rank alone)."""
TIMEOUT_S = 120.0


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run dsf-train in two processes."""
    return subprocess.run([*TORCHRUN, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S)


def messages(errors: str) -> list[str]:
    """Lines that dsf-train wrote, among those of torchrun."""
    return [line for line in errors.splitlines() if line.startswith("dsf-train: ")]


@pytest.mark.slow
@pytest.mark.parametrize("extra", [(), ("--rate-penalty", "0.1", "--model.norm", "reptbn")], ids=["plain", "penalty"])
def test_two_processes_train_as_one(extra: tuple[str, ...], tiny_store: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    settings = (*TINY, *PADDED, *HALF_BLENDED, *UNSCORED, *extra)
    trained(HOPPER, "--out", str(one), *settings)
    done = torchrun(HOPPER, "--out", str(two), *settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 0 of 20") == 1 and "2 process(es)" in done.stdout  # rank 0 speaks alone
    assert len(list(two.glob("events.out.tfevents*"))) == 1

    left, right = load_file(one / CHECKPOINT_NAME), load_file(two / CHECKPOINT_NAME)
    assert left.keys() == right.keys()
    far = {name: float((left[name] - right[name]).abs().max()) for name in left if name.startswith("model.")}
    assert max(far.values()) < TOLERANCE, far
    assert load_checkpoint(two).header["ranks"] == 2
    for mine, theirs in zip(metrics(one), metrics(two), strict=True):
        assert mine["step"] == theirs["step"] and mine.get(LOSS, 0.0) == pytest.approx(theirs.get(LOSS, 0.0), rel=1e-4)
    assert {row["train/blend"] for row in metrics(two)[10:STEPS]} == {0.0}


@pytest.mark.slow
def test_batch_that_ranks_cannot_share_is_refused(tiny_store: Path, tmp_path: Path) -> None:
    done = torchrun(HOPPER, "--out", str(tmp_path / "run"), *TINY, "--batch-size", "7")
    assert done.returncode != 0
    line = "dsf-train: --batch-size is 7: it must be a multiple of 2 processes"
    assert set(messages(done.stderr)) == {line}
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("leftovers", "words"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, RANK is not set"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is many"),
        ({"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, "RANK is 2"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "x"}, "MASTER_PORT is not set"),
    ],
)
def test_what_another_program_has_left_of_torchruns_variables_is_refused(
    leftovers: dict[str, str], words: str, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in leftovers.items():
        monkeypatch.setenv(name, value)
    assert_refused(train_here(HOPPER, "--out", str(tmp_path / "run"), *TINY), words, "unset WORLD_SIZE")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_signal_ends_the_wait_for_processes_that_do_not_come(rank: str, tiny_store: Path, tmp_path: Path) -> None:
    """Torch waits in C++, where no signal of Python's arrives: rank 0 to be called, the others for its answer."""
    left = {"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"}
    command = [str(SCRIPTS / "dsf-train"), HOPPER, "--out", str(tmp_path / "run"), *TINY]
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        left["MASTER_PORT"] = str(silent.getsockname()[1])
        if rank == "0":
            silent.close()
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **left})
        if rank == "0":
            while not (tmp_path / "run").exists():  # it is held from just before the wait on
                assert process.poll() is None
                time.sleep(0.05)
        else:
            silent.settimeout(TIMEOUT_S)
            stack.enter_context(silent.accept()[0])
        time.sleep(0.5)
        begun = time.monotonic()
        process.terminate()
        _, errors = process.communicate(timeout=20.0)
    assert (process.returncode, errors) == (143, "dsf-train: ended by SIGTERM\n")
    assert time.monotonic() - begun < 5.0 and not (tmp_path / "run").exists()


def descendants(parent: int) -> list[int]:
    """Processes below one, all generations."""
    children = [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    return [each for child in children for each in (child, *descendants(child))]


def rank_of(process: int) -> str:
    """What torchrun told this process."""
    variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return next((value.decode()[5:] for value in variables if value.startswith(b"RANK=")), "")


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["0", "1"])
def test_killed_rank_ends_the_run(victim: str, tiny_store: Path, tmp_path: Path) -> None:
    endless = ("--steps", "1000000", "--checkpoint-every", "5", *UNSCORED)
    command = [*TORCHRUN, HOPPER, "--out", str(tmp_path), *TINY, *endless]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + TIMEOUT_S
    while not (tmp_path / CHECKPOINT_NAME).exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    family = descendants(process.pid)
    (chosen,) = (member for member in family if rank_of(member) == victim)
    os.kill(chosen, signal.SIGKILL)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode != 0
    assert not any(Path(f"/proc/{member}").exists() for member in family)
    assert len(messages(errors)) == 1, errors
    assert "another process of this run has ended" in errors or "ended by SIGTERM" in errors
    assert "dsf/train" not in errors  # the survivor's traceback
    assert load_checkpoint(tmp_path).header["step"] >= 5
