"""A simulation's output: its speed, and all details of a failure."""

import json
import sys
import traceback
from pathlib import Path
from typing import TextIO

from tests.simulation.actions import Action
from tests.simulation.driver import RunOutcome

HOUR_MS = 3_600_000
PROGRESS_SEEDS = 100


class SimulationReport:
    """Sums up the outcomes of runs."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self.out = out
        self.failures: list[int] = []
        self.seeds = self.actions = self.audits = self.sessions = self.commands = 0
        self.virtual_ms = 0

    def say(self, line: str) -> None:
        """Prints a line at once."""
        print(line, file=self.out, flush=True)

    def add(self, outcome: RunOutcome) -> None:
        """Adds a finished run."""
        self.seeds += 1
        self.actions += len(outcome.actions)
        self.audits += outcome.audits
        self.sessions += outcome.sessions
        self.commands += outcome.commands
        self.virtual_ms += outcome.virtual_ms
        if outcome.failure is not None:
            self.failures.append(outcome.seed)
            self.say(f"seed {outcome.seed} fails after {len(outcome.actions)} actions:"
                     f" {outcome.complaint}")  # fmt: skip
        if self.seeds % PROGRESS_SEEDS == 0:
            self.say(f"{self.seeds} seeds so far, {len(self.failures)} failed")

    def failure(self, outcome: RunOutcome) -> None:
        """Prints the shortest trace of a failure, readable and runnable."""
        self.say(f"\nseed {outcome.seed}: {len(outcome.actions)} actions")
        at_ms = 0
        for action in outcome.actions:
            self.say(f"  {at_ms / 1000:>12.3f} s  {action}")
            at_ms += action.parameters.get("ms", 0) if action.name == "wait" else 0
        assert outcome.failure is not None
        lines = traceback.format_exception(outcome.failure, limit=-4)
        self.say("".join(lines)[-6_000:])

    def total(self, real_s: float) -> None:
        """Prints the last line."""
        hours = self.virtual_ms / HOUR_MS
        self.say(
            f"{self.seeds} seeds, {hours:.1f} simulated hours in {real_s:.1f} s"
            f" ({hours / real_s:.1f} hours a second): {self.actions} actions,"
            f" {self.audits} audits, {self.sessions} sessions, {self.commands} commands of Redis;"
            f" {len(self.failures)} seeds failed"
            + (f": {' '.join(map(str, sorted(self.failures)))}" if self.failures else "")
        )


def save(path: Path, outcome: RunOutcome) -> None:
    """Saves a trace, to be run again with ``--trace``."""
    lines = [json.dumps({"seed": outcome.seed}), *(one.encoded() for one in outcome.actions)]
    path.write_text("\n".join(lines) + "\n")


def load(path: Path) -> tuple[int, list[Action]]:
    """Loads a saved trace: its seed and its actions."""
    first, *rest = path.read_text().splitlines()
    return int(json.loads(first)["seed"]), [Action.decoded(line) for line in rest]
