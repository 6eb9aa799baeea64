"""The hunt: runs worlds with a mutant until the auditor complains.

The worlds are the same for every mutant. A world that does not reach the mutant's piece with the
unchanged scripts is the same with the mutant, so it is not run.
"""

import json
import signal
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from tests.simulation.directed import DIRECTED
from tests.simulation.driver import Laboratory, RunOutcome
from tests.simulation.mixes import MIXES
from tests.simulation.mutants import Mutant
from tests.simulation.traces import SEED
from tests.simulation.virtual_redis import ScriptChange

WORLDS = 40
POOL = 64
"""Number of worlds from which each mutant gets those that reach it."""
LEFT_OUT: set[int] = set()
"""Seeds whose worlds break a promise with the unchanged scripts."""
PLAIN_MINUTES, DENSE_MINUTES = 90, 12
STUCK_S = 8
"""Processor time after which a world counts as endless. A world usually takes a second."""
SURVIVORS = Path(__file__).parent / "survivors.toml"
NOTICED = Path(__file__).parent / "noticed.json"

Anchor = tuple[str, str, str, str, int]


class Case(NamedTuple):
    """One world of a hunt."""

    seed: int
    minutes: int
    mix: str
    directed: str = ""
    """The name of the directed world (``directed``); "" where chance decides."""

    def __str__(self) -> str:
        return self.directed or f"{self.mix or 'plain'} {self.seed}"


class Reach(NamedTuple):
    """What a world reaches with the unchanged scripts, and what it costs."""

    pieces: frozenset[int]
    """Numbers of the reached pieces, counted over all scripts."""
    commands: int
    """Number of Redis commands: the cost of running the world."""


class EndlessWorldError(Exception):
    """A world does not end."""


def cases(worlds: int = POOL, first: int = 900) -> list[Case]:
    """Worlds of all mixes in turn, each run by chance."""
    made = []
    for index in range(worlds):
        mix = MIXES[index % len(MIXES)]
        if first + index not in LEFT_OUT:
            made.append(Case(first + index, DENSE_MINUTES if mix else PLAIN_MINUTES, mix))
    return made


def directed_cases() -> list[Case]:
    """The directed worlds, whose actions are written by hand."""
    return [Case(SEED, 0, world.mix, name) for name, world in DIRECTED.items()]


@dataclass(frozen=True)
class HuntResult:
    """The result of a hunt for one mutant."""

    mutant: Mutant
    worlds: int
    """Number of worlds that were run."""
    noticed_in: str = ""
    """The world whose auditor complained; "" when none did."""
    complaint: str = ""
    real_s: float = 0.0

    @property
    def noticed(self) -> bool:
        """Whether the auditor complained."""
        return bool(self.noticed_in)


class Hunter:
    """Runs worlds in a laboratory, one after the other."""

    def __init__(self, lab: Laboratory) -> None:
        self.lab = lab

    def reach(self, case: Case) -> Reach:
        """What a world reaches with the unchanged scripts.

        A world that breaks a promise with them says nothing about a mutant, so it counts as
        reaching nothing.
        """
        outcome = self._run(case, tell_reached=True)
        pieces = () if outcome.failure is not None else outcome.reached
        return Reach(frozenset(pieces), outcome.commands)

    def hunt(self, mutant: Mutant, worlds: Iterable[Case]) -> HuntResult:
        """Runs worlds until the auditor complains."""
        count, real_s = 0, 0.0
        for case, outcome in self.runs(mutant, worlds):
            count += 1
            real_s += outcome.real_s
            if outcome.failure is not None:
                complaint = f"{outcome.complaint}: {str(outcome.failure)[:300]}"
                return HuntResult(mutant, count, str(case), complaint, real_s)
        return HuntResult(mutant, count, real_s=real_s)

    def notices(self, change: ScriptChange, worlds: Iterable[Case]) -> bool:
        """Whether the auditor complains in any of the worlds."""
        return any(outcome.failure is not None for _, outcome in self.runs(change, worlds))

    def runs(
        self, change: ScriptChange, worlds: Iterable[Case]
    ) -> Iterator[tuple[Case, RunOutcome]]:
        """Runs one world after the other with a change."""
        for case in worlds:
            yield case, self._run(case, [change])

    def _run(
        self, case: Case, mutations: Sequence[ScriptChange] = (), *, tell_reached: bool = False
    ) -> RunOutcome:
        with _bounded(STUCK_S) as stuck:
            outcome = self.lab.run(
                case.seed,
                case.minutes,
                actions=DIRECTED[case.directed].actions if case.directed else None,
                mix=case.mix,
                mutations=mutations,
                tell_reached=tell_reached,
            )
        if stuck:
            self.lab.reconnect()
            outcome.failure = stuck[0]
        return outcome


@contextmanager
def _bounded(processor_s: int) -> Iterator[list[EndlessWorldError]]:
    errors: list[EndlessWorldError] = []

    def stuck(_: int, __: FrameType | None) -> None:
        errors.append(EndlessWorldError(f"still running after {processor_s} s"))
        raise errors[-1]

    before = signal.signal(signal.SIGPROF, stuck)
    # The signal repeats, because an error raised in one task may end only that task.
    signal.setitimer(signal.ITIMER_PROF, processor_s, 1)
    try:
        yield errors
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def noticed(path: Path = NOTICED) -> dict[Anchor, str]:
    """The world that noticed each mutant last, by the mutant's name."""
    found: dict[Anchor, str] = {}
    for world, mutants in json.loads(path.read_text()).items():
        for script, rule, code, piece, ordinal in mutants:
            found[script, rule, code, piece, ordinal] = world
    return found


def remember(found: Mapping[Anchor, str], path: Path = NOTICED) -> None:
    """Writes down in which world each mutant was noticed."""
    worlds: dict[str, list[str]] = {}
    for anchor, world in sorted(found.items()):
        worlds.setdefault(world, []).append(json.dumps(anchor))
    parts = [
        f"{json.dumps(world)}: [\n  " + ",\n  ".join(mutants) + "\n]"
        for world, mutants in sorted(worlds.items())
    ]
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


class Survivor(NamedTuple):
    """A mutant that no world shows, and the reason."""

    anchor: Anchor
    is_equivalent: bool
    """Whether the mutant does what the script does, so that no world can show it."""
    reason: str


def survivors(path: Path = SURVIVORS) -> dict[Anchor, Survivor]:
    """The mutants that are known to survive."""
    found: dict[Anchor, Survivor] = {}
    for group in tomllib.loads(path.read_text()).get("survivors", []):
        for mutant in group["mutants"]:
            script, rule, code, piece, *ordinal = mutant
            anchor = script, rule, code, piece, ordinal[0] if ordinal else 0
            found[anchor] = Survivor(anchor, group["equivalent"], group["reason"])
    return found
