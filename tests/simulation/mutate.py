"""``scripts/mutate``: breaks the Lua scripts by rule, to test the auditor.

It reports which breaks the auditor notices. Each mutant is one script with one write or comparison
deleted or inverted (``mutants`` has the rules). Worlds that reach the mutant are run until the
auditor complains. Results are kept in a file, so a hunt that ended early continues from there.
``survivors.toml`` names the mutants that no world shows, with the reasons; those that are
equivalent to the script do not count in the score.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import math
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import structlog

import storage.redis.scripts
from tests.simulation.hunt import (
    WORLDS,
    Anchor,
    Case,
    Hunter,
    HuntResult,
    Reach,
    cases,
    directed_cases,
    noticed,
    remember,
    survivors,
)
from tests.simulation.laboratory import laboratory
from tests.simulation.mutants import Mutant, all_mutants

ROOT = Path(__file__).parents[2]
SOURCES = ("protocol", "storage", "server", "tests/simulation")

Task = Case | tuple[Mutant, list[Case]]


def main() -> int:
    """Runs what the command line asks for.

    Returns 1 when an unlisted mutant survives.
    """
    if os.environ.get("PYTHONHASHSEED") != "0":
        arguments = [sys.executable, "-m", "tests.simulation.mutate", *sys.argv[1:]]
        os.execve(sys.executable, arguments, {**os.environ, "PYTHONHASHSEED": "0"})
    asked = _parse()
    chosen = _chosen(asked)
    if asked.list:
        for mutant in chosen:
            print(f"{mutant.name}: {' '.join(mutant.piece.split())}")
        return 0
    return MutationReport(asked, chosen).run()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/mutate", description=__doc__)
    parser.add_argument("--only", action="append", metavar="SCRIPT[:LINE]", default=[],
                        help="mutants of one script, or of one of its lines")  # fmt: skip
    parser.add_argument("--sample", type=int, help="number of mutants, chosen by --seed")
    parser.add_argument("--seed", type=int, default=1, help="chooses the sample")
    parser.add_argument("--worlds", type=int, default=WORLDS, help="most worlds for each mutant")
    parser.add_argument("--workers", type=int, default=1, help="number of processes side by side")
    parser.add_argument("--results", type=Path, help="keeps results, and continues from them")
    parser.add_argument("--known", action="store_true", help="also hunts known survivors")
    parser.add_argument("--again", action="store_true",
                        help="also hunts survivors in the file of results")  # fmt: skip
    parser.add_argument("--remember", action="store_true",
                        help="saves which world showed which mutant (noticed.json)")  # fmt: skip
    parser.add_argument("--list", action="store_true", help="only prints the mutants")
    return parser.parse_args()


def _chosen(asked: argparse.Namespace) -> list[Mutant]:
    found = all_mutants()
    if asked.only:
        wanted = [one.replace(".lua", "").partition(":") for one in asked.only]
        found = [
            mutant
            for mutant in found
            if any(
                mutant.script == script and (not line or mutant.line == int(line))
                for script, _, line in wanted
            )
        ]
    if asked.sample is not None:
        picked = random.Random(asked.seed).sample(found, min(asked.sample, len(found)))
        found = sorted(picked, key=found.index)
    return found


class MutationReport:
    """Runs a hunt, and prints its results."""

    def __init__(self, asked: argparse.Namespace, chosen: list[Mutant]) -> None:
        self.asked = asked
        self.chosen = chosen
        self.known = survivors()
        self.digest = _digest()
        self.findings: dict[Anchor, HuntResult] = {}
        self.reach: dict[Case, Reach] = {}
        self.noticed = noticed()
        """The world that showed each mutant before, which is tried first."""

    def run(self) -> int:
        """Hunts every mutant. Returns 1 when an unlisted one survives."""
        began_at = time.monotonic()
        self._resume()
        worlds = directed_cases() + cases()
        due = [mutant for mutant in self.chosen if self._is_due(mutant)]
        self._say(f"{len(self.chosen)} mutants, {len(due)} to look for in {len(worlds)} worlds")
        with Workers(min(self.asked.workers, max(1, len(due)))) as workers:
            if due:
                missing: list[Task] = [case for case in worlds if case not in self.reach]
                for task, answer in workers.run(missing):
                    assert isinstance(task, Case)
                    self.reach[task] = answer
                    pieces, commands = answer
                    if not pieces:
                        self._say(f"{task} breaks a promise without any mutant, and is left out")
                    told = {"reached": sorted(pieces), "commands": commands}
                    self._keep({"case": list(task), **told})
            tasks: list[Task] = []
            order = Order(self.reach) if due else None
            for mutant in due:
                assert order is not None
                within = order.worlds(mutant, self.noticed.get(mutant.anchor, ""))
                tasks.append((mutant, within[: self.asked.worlds]))
            for count, (_, finding) in enumerate(workers.run(tasks), 1):
                self._found(finding)
                self._say(f"{count}/{len(tasks)} {_line(finding)}")
        if self.asked.remember:
            there = {mutant.anchor for mutant in all_mutants()}
            kept = {anchor: world for anchor, world in self.noticed.items() if anchor in there}
            found = {
                anchor: finding.noticed_in
                for anchor, finding in self.findings.items()
                if finding.noticed
            }
            lost = {anchor for anchor, finding in self.findings.items() if not finding.noticed}
            remember({anchor: at for anchor, at in {**kept, **found}.items() if anchor not in lost})
        return self._total(time.monotonic() - began_at)

    def _is_due(self, mutant: Mutant) -> bool:
        if mutant.anchor in self.known and not self.asked.known:
            return False
        found = self.findings.get(mutant.anchor)
        return found is None or (self.asked.again and not found.noticed)

    # --- What was found before ---------------------------------------------------------

    def _resume(self) -> None:
        path: Path | None = self.asked.results
        if path is None or not path.exists():
            return
        by_anchor = {mutant.anchor: mutant for mutant in self.chosen}
        for line in path.read_text().splitlines():
            told = json.loads(line)
            if "case" in told:
                if told["digest"] == self.digest:
                    reach = Reach(frozenset(told["reached"]), told["commands"])
                    self.reach[Case(*told["case"])] = reach
                continue
            mutant = by_anchor.get(tuple(told["anchor"]))
            if mutant is not None and told["noticed_in"]:
                self.noticed[mutant.anchor] = told["noticed_in"]
            if mutant is None or told["text"] != _text(mutant.script):
                continue
            self.findings[mutant.anchor] = HuntResult(
                mutant, told["worlds"], told["noticed_in"], told["complaint"], told["real_s"]
            )

    def _keep(self, told: dict[str, Any]) -> None:
        if self.asked.results is not None:
            with self.asked.results.open("a") as file:
                file.write(json.dumps({"digest": self.digest, **told}) + "\n")

    def _found(self, finding: HuntResult) -> None:
        mutant = finding.mutant
        self.findings[mutant.anchor] = finding
        self._keep(
            {
                "mutant": mutant.name,
                "anchor": list(mutant.anchor),
                "text": _text(mutant.script),
                "worlds": finding.worlds,
                "noticed_in": finding.noticed_in,
                "complaint": finding.complaint,
                "real_s": round(finding.real_s, 2),
            }
        )

    # --- What is printed ---------------------------------------------------------------

    def _say(self, line: str) -> None:
        print(line, flush=True)

    def _total(self, real_s: float) -> int:
        noticed, equivalent, known, unknown = 0, 0, [], []
        for mutant in self.chosen:
            found, survivor = self.findings.get(mutant.anchor), self.known.get(mutant.anchor)
            if found is not None and found.noticed:
                noticed += 1
                if survivor is not None:
                    self._say(f"noticed, though it is listed: {_line(found)}")
            elif survivor is None:
                unknown.append(mutant)
            elif survivor.is_equivalent:
                equivalent += 1
            else:
                known.append((mutant, survivor))
        for mutant, survivor in known:
            self._say(f"known: {mutant.name}: {survivor.reason}")
        for mutant in unknown:
            self._say(f"survives: {mutant.name}: {' '.join(mutant.piece.split())}")
        counted = len(self.chosen) - equivalent
        share = 100 * noticed / counted if counted else 100.0
        self._say(
            f"{len(self.chosen)} mutants in {real_s:.0f} s: {equivalent} are equivalent,"
            f" {noticed} of {counted} noticed ({share:.1f} %),"
            f" {len(known)} known survivors, {len(unknown)} others"
        )
        return 1 if unknown else 0


class Order:
    """The order of the worlds tried for a mutant's piece.

    These worlds reach the piece.
    """

    def __init__(self, reach: Mapping[Case, Reach]) -> None:
        self._reach = reach
        self._scripts = {mutant.number: mutant.script for mutant in all_mutants()}
        self._worlds = Counter(piece for found in reach.values() for piece in found.pieces)

    def worlds(self, mutant: Mutant, noticed_in: str = "") -> list[Case]:
        """The worlds for a mutant, the most promising first.

        The world that showed it before comes first. Then come worlds that reach most of those
        pieces of the script that few other worlds reach, and that take the least time for it.
        """
        within = [case for case, found in self._reach.items() if mutant.number in found.pieces]
        return sorted(
            within, key=lambda case: (str(case) != noticed_in, -self._worth(case, mutant))
        )

    def _worth(self, case: Case, mutant: Mutant) -> float:
        found = self._reach[case]
        rare = sum(
            1 / self._worlds[piece]
            for piece in found.pieces
            if self._scripts.get(piece) == mutant.script
        )
        return rare / math.sqrt(max(1, found.commands))


def _line(finding: HuntResult) -> str:
    told = f"noticed in {finding.noticed_in} by {finding.complaint[:90]!r}"
    if not finding.noticed:
        told = "survives" if finding.worlds else "is not reached"
    return f"{finding.mutant.name}: {told} ({finding.worlds} worlds, {finding.real_s:.1f} s)"


def _text(script: str) -> str:
    text = (storage.redis.scripts.LUA_DIR / f"{script}.lua").read_bytes()
    return hashlib.sha256(text).hexdigest()[:12]


def _digest() -> str:
    """Digest of everything that makes a world."""
    made = hashlib.sha256()
    for source in SOURCES:
        for path in sorted((ROOT / source).rglob("*")):
            if path.suffix in (".py", ".lua", ".sql"):
                made.update(path.read_bytes())
    return made.hexdigest()[:12]


class Workers:
    """Processes with their own laboratories, which take tasks in turn."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._processes: list[multiprocessing.Process] = []
        self._lines: list[Connection] = []

    def __enter__(self) -> "Workers":
        for _ in range(self.count):
            mine, theirs = multiprocessing.Pipe()
            process = multiprocessing.Process(target=_work, args=(theirs, [*self._lines, mine]))
            process.start()
            theirs.close()
            self._processes.append(process)
            self._lines.append(mine)
        return self

    def __exit__(self, *_: object) -> None:
        for line in self._lines:
            line.send(None)
        for process in self._processes:
            process.join()

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
        """Yields every task with its result, as soon as it is done."""
        left, under_way = iter(tasks), dict[Connection, Task]()
        for line in self._lines:
            self._give(line, left, under_way)
        while under_way:
            wait(list(under_way))
            for line in list(under_way):
                if not line.poll():
                    continue
                answer, task = line.recv(), under_way.pop(line)
                if isinstance(answer, Exception):
                    raise answer
                self._give(line, left, under_way)
                yield task, answer

    def _give(
        self, line: Connection, left: Iterator[Task], under_way: dict[Connection, Task]
    ) -> None:
        task = next(left, None)
        if task is not None:
            line.send(task)
            under_way[line] = task


def _work(line: Connection, others: Sequence[Connection]) -> None:
    for other in others:
        # Otherwise the worker would not notice the death of the process that started it.
        other.close()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with laboratory() as lab:
        hunter = Hunter(lab)
        while True:
            try:
                task: Task | None = line.recv()
            except EOFError:
                return
            if task is None:
                return
            try:
                answer: Any = hunter.reach(task) if isinstance(task, Case) else hunter.hunt(*task)
            except Exception as error:
                answer = RuntimeError(f"{error}: {error.__cause__}"[:2_000])
            with contextlib.suppress(BrokenPipeError):
                line.send(answer)


if __name__ == "__main__":
    sys.exit(main())
