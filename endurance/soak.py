"""A long run of both engines: is memory flat, and is every spike of the fast engine still the reference's?

A million decisions in the fast engine and ten thousand in Lava (fused), in closed loop with Hopper, episode after
episode; on the way resident memory, file descriptors, threads, child processes and shared memory are sampled. Then the
fast engine against the reference, spike by spike and accumulator by accumulator: half of the decisions in closed loop,
half on random tokens. Exit code 1 if memory grows, anything leaks or a bit differs. Writes its table into
docs/reliability.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from dsf.export.network.file import read_network
from dsf.export.network.network import Network
from dsf.export.network.reference import decode, encode
from dsf.export.proof.rungs import random_entering
from dsf.runtime.artifacts import network_path
from dsf.runtime.engines.interface import BackendName, Engine
from dsf.runtime.engines.parity import Parity, ParityCheck, Spikes
from dsf.runtime.open_engine import open_engine
from dsf.shell.generated_section import replace_section
from dsf.tasks import get_task
from dsf.tasks.lane import Lane, stack_tokens
from dsf.testing.measurement import ROOT, when_and_what

DOCUMENT = ROOT / "docs" / "reliability.md"
SAMPLES = 20
WARM_UP_SAMPLES = 5
"""While caches fill and allocators settle, memory may grow."""
TOLERANCE_KIB = 1024
"""Growth allowed afterwards, over all processes: two bytes lost per decision would exceed it in the fast engine."""
RANDOM_EPISODE = 700
"""Random tokens between two resets: as long as many an episode."""


@dataclass(frozen=True)
class Usage:
    """What this process and its children hold after so many decisions."""

    decisions: int
    resident_kib: int
    descriptors: int
    threads: int
    children: int
    segments: int
    """Pieces of shared memory, and semaphores, which are such pieces as well."""

    @staticmethod
    def now(decisions: int) -> Usage:
        """Sampled from /proc."""
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        places = [Path("/proc") / name for name in ("self", *children)]
        status = [(place / "status").read_text() for place in places]
        return Usage(
            decisions,
            sum(int(size) for text in status for size in re.findall(r"VmRSS:\s+(\d+)", text)),
            sum(len(list((place / "fd").iterdir())) for place in places),
            sum(int(count) for text in status for count in re.findall(r"Threads:\s+(\d+)", text)),
            len(children),
            len({name for place in places for name in re.findall(r"/dev/shm/\S+", (place / "maps").read_text())}),
        )

    @property
    def held(self) -> tuple[int, int, int, int]:
        """What must not change at all."""
        return self.descriptors, self.threads, self.children, self.segments


class Checked:
    """An engine with the reference beside it: every decision is compared."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.network, self.check = engine, engine.network, ParityCheck(engine.network)

    def reset(self, lane: int) -> None:
        """Start a new episode."""
        self.engine.reset(lane)
        self.check.reset()

    def step_graded(self, graded: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.int64], Spikes]:
        """Decide and compare."""
        answer = self.engine.step_graded(graded)
        self.check.check(graded, *answer)
        return answer


def closed_loop(engine: Engine | Checked, decisions: int) -> Iterator[int]:
    """Hopper, one episode after the other; yields the number of episodes so far, after each decision."""
    task, network, episodes = get_task("hopper"), engine.network, 0
    lane = Lane(task)
    for _ in range(decisions):
        if not lane.running:
            lane.start(episodes, network.target_return or task.target_returns[0])
            engine.reset(0)
            episodes += 1
        accumulators, _ = engine.step_graded(encode(network.encoder, stack_tokens([lane], task).vector()))
        lane.step(decode(network.readout, accumulators)[0])
        yield episodes
    lane.close()


def random_tokens(engine: Checked, decisions: int) -> Iterator[int]:
    """Tokens over the encoder's whole range, in episodes; as :func:`closed_loop`."""
    generator = np.random.default_rng(0)
    for done in range(decisions):
        if done % RANDOM_EPISODE == 0:
            engine.reset(0)
        engine.step_graded(random_entering(engine.network, (1,), generator))
        yield 1 + done // RANDOM_EPISODE


@dataclass(frozen=True)
class Soak:
    """One engine's long run."""

    engine: str
    decisions: int
    episodes: int
    seconds: float
    samples: list[Usage]
    left: Usage
    """After the engine was closed."""

    @property
    def growth_kib(self) -> float:
        """Median of the last samples minus median of the first ones after the warm-up."""
        settled = [sample.resident_kib for sample in self.samples[WARM_UP_SAMPLES:]]
        half = len(settled) // 2
        return median(settled[-half:]) - median(settled[:half])

    @property
    def complaints(self) -> list[str]:
        """What is not flat."""
        held = {sample.held for sample in self.samples}
        found = [f"memory grew by {self.growth_kib:.0f} KiB"] if self.growth_kib > TOLERANCE_KIB else []
        found += [f"descriptors, threads, children, segments changed: {sorted(held)}"] if len(held) > 1 else []
        found += [f"shared memory left: {self.left.segments} pieces"] if self.left.segments else []
        return [f"{self.engine}: {text}" for text in found]

    def markdown(self) -> str:
        """One line of the table."""
        first, last = self.samples[WARM_UP_SAMPLES], self.samples[-1]
        return (
            f"| {self.engine} | {self.decisions:,} | {self.episodes:,} | {self.seconds:.0f} "
            f"| {first.resident_kib / 1024:.1f} | {last.resident_kib / 1024:.1f} | {self.growth_kib:+.0f} "
            f"| {last.descriptors} | {last.threads} | {last.children} | {last.segments} |"
        )


HEADER = (
    "| engine | decisions | episodes | seconds | MiB after a quarter | MiB at the end | growth, KiB | descriptors "
    "| threads | children | shared memory |"
)


def soak(network: Network, backend: BackendName, decisions: int, console: Console) -> Soak:
    """Run an engine for long and sample on the way."""
    samples, every, episodes = [], decisions // SAMPLES, 0
    started = time.perf_counter()
    with open_engine(network, backend) as engine:
        loop = track(closed_loop(engine, decisions), backend, decisions, console=console, transient=True)
        for done, episodes in enumerate(loop, start=1):  # noqa: B007
            if done % every == 0:
                samples.append(Usage.now(done))
    seconds = time.perf_counter() - started
    gc.collect()  # Lava's objects refer to one another
    return Soak(backend, decisions, episodes, seconds, samples, Usage.now(decisions))


def compare(network: Network, decisions: int, console: Console) -> dict[str, Parity]:
    """The fast engine against the reference on both kinds of tokens."""
    found = {}
    for name, drive in (("closed loop", closed_loop), ("random tokens", random_tokens)):
        with open_engine(network, "fast") as engine:
            checked = Checked(engine)
            for _ in track(drive(checked, decisions // 2), name, decisions // 2, console=console, transient=True):
                pass
        found[name] = checked.check.result
    return found


def report(soaks: list[Soak], parities: dict[str, Parity], decisions: int) -> str:
    """The generated part of the document."""
    slots = sum(parity.compared_spikes for parity in parities.values())
    wrong = sum(parity.mismatches + parity.accumulator_mismatches for parity in parities.values())
    return "\n".join(
        [
            f"{when_and_what()}. All processes of a run together. Growth: median of the last samples minus median of "
            f"the first ones after a quarter of the run; more than {TOLERANCE_KIB} KiB fails.",
            "",
            HEADER,
            "|" + "---|" * (HEADER.count("|") - 1),
            *(one.markdown() for one in soaks),
            "",
            f"Fast engine against the reference, shipped network, {decisions:,} decisions ({' and '.join(parities)}, "
            f"half each): {slots:,} spike slots and all accumulators compared, {wrong} differ.",
        ]
    )


def main() -> None:
    """Run, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast-decisions", type=int, default=1_000_000)
    parser.add_argument("--lava-decisions", type=int, default=10_000)
    parser.add_argument("--compare-decisions", type=int, default=100_000)
    parser.add_argument("--quick", action="store_true", help="under 45 seconds; the document stays as it is")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.fast_decisions, options.lava_decisions, options.compare_decisions = 10_000, 400, 800
    console, network = Console(), read_network(network_path())
    soaks = [soak(network, "lava", options.lava_decisions, console)]  # first: Lava's children begin as copies of this
    soaks.append(soak(network, "fast", options.fast_decisions, console))
    parities = compare(network, options.compare_decisions, console)
    text = report(soaks, parities, options.compare_decisions)
    console.print(text, soft_wrap=True, markup=False, highlight=False)
    complaints = [text for one in soaks for text in one.complaints]
    complaints += [
        f"{name}: {parity.first_mismatch or 'accumulators'}" for name, parity in parities.items() if not parity.exact
    ]
    for complaint in complaints:
        console.print(f"complaint: {complaint}", soft_wrap=True, markup=False, highlight=False)
    if not options.quick:
        replace_section(DOCUMENT, "soak", text)
    if options.json:
        found = {
            "soaks": [asdict(one) for one in soaks],
            "parity": {name: asdict(one) for name, one in parities.items()},
        }
        options.json.write_text(json.dumps({"complaints": complaints, **found}, indent=2) + "\n")
    sys.exit(1 if complaints else 0)


if __name__ == "__main__":
    main()
