"""The hunt: worlds are run with a mutant until the auditor complains.

The worlds are the same for every mutant. A world that does not reach the mutant's piece with the
scripts as they are is the same world with the mutant, so it is not run.
"""

import signal
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from tests.simulation.driver import Laboratory, Outcome
from tests.simulation.mixes import MIXES
from tests.simulation.mutants import Mutant

WORLDS = 40
PLAIN_MINUTES, DENSE_MINUTES = 90, 20
STUCK_S = 8
"""A world takes a second of processor time. One that takes this long does not come to an end."""
SURVIVORS = Path(__file__).parent / "survivors.toml"

Anchor = tuple[str, str, str, str, int]


class Case(NamedTuple):
    """A world."""

    seed: int
    minutes: int
    mix: str

    def __str__(self) -> str:
        return f"{self.mix or 'plain'} {self.seed}"


class StuckError(Exception):
    """A world does not come to an end."""


def cases(worlds: int = WORLDS, first: int = 700) -> list[Case]:
    """Worlds of all mixes in turn."""
    made = []
    for index in range(worlds):
        mix = MIXES[index % len(MIXES)]
        made.append(Case(first + index, DENSE_MINUTES if mix else PLAIN_MINUTES, mix))
    return made


@dataclass(frozen=True)
class Finding:
    """What a hunt found out about a mutant."""

    mutant: Mutant
    worlds: int
    """How many were run."""
    noticed_in: str = ""
    """The world whose auditor complained; "" when none did."""
    complaint: str = ""
    real_s: float = 0.0

    @property
    def noticed(self) -> bool:
        """Whether the auditor complained."""
        return bool(self.noticed_in)


class Hunter:
    """Runs worlds in engines of its own, one after the other."""

    def __init__(self, place: Laboratory) -> None:
        self.place = place

    def reached(self, case: Case) -> frozenset[int]:
        """The pieces of all scripts that a world reaches; it keeps every promise."""
        outcome = self._run(case, tell_reached=True)
        if outcome.failure is not None:
            raise RuntimeError(f"{case} fails without any mutant") from outcome.failure
        return frozenset(outcome.reached)

    def hunt(self, mutant: Mutant, worlds: Iterable[Case]) -> Finding:
        """Runs worlds until the auditor complains."""
        count, real_s = 0, 0.0
        for case in worlds:
            count += 1
            outcome = self._run(case, [mutant])
            real_s += outcome.real_s
            if outcome.failure is not None:
                complaint = f"{outcome.complaint}: {str(outcome.failure)[:300]}"
                return Finding(mutant, count, str(case), complaint, real_s)
        return Finding(mutant, count, real_s=real_s)

    def _run(
        self, case: Case, mutations: Sequence[Mutant] = (), *, tell_reached: bool = False
    ) -> Outcome:
        with _bounded(STUCK_S):
            return self.place.run(
                case.seed,
                case.minutes,
                mix=case.mix,
                mutations=mutations,
                tell_reached=tell_reached,
            )


@contextmanager
def _bounded(processor_s: int) -> Iterator[None]:
    def stuck(_: int, __: FrameType | None) -> None:
        raise StuckError(f"still running after {processor_s} s")

    before = signal.signal(signal.SIGPROF, stuck)
    # Again and again: where it is raised first, it may end one task and no more.
    signal.setitimer(signal.ITIMER_PROF, processor_s, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


class Survivor(NamedTuple):
    """A mutant that no world shows, and the reason."""

    anchor: Anchor
    is_equivalent: bool
    """It does what the script does: no world can show it."""
    reason: str


def survivors(path: Path = SURVIVORS) -> dict[Anchor, Survivor]:
    """The mutants that are known not to be noticed."""
    found: dict[Anchor, Survivor] = {}
    for group in tomllib.loads(path.read_text()).get("survivors", []):
        for mutant in group["mutants"]:
            script, rule, code, piece, *ordinal = mutant
            anchor = script, rule, code, piece, ordinal[0] if ordinal else 0
            found[anchor] = Survivor(anchor, group["equivalent"], group["reason"])
    return found
