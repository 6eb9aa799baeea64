"""``scripts/simulate``: runs many seeds, and prints the outcomes.

Every seed is one world, a cluster in virtual time. ``--workers`` runs worlds side by side, each in
a process with a Redis and a Postgres of its own. A seed that fails is run again and shrunk.
"""

import argparse
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import structlog

from tests.simulation import report
from tests.simulation.driver import RunOutcome
from tests.simulation.laboratory import laboratory
from tests.simulation.mixes import world_of
from tests.simulation.shrink import failing, shrunken


def main() -> int:
    """Runs what the command line asks for.

    Returns 1 when a promise was broken.
    """
    asked = _parse()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # A fixed hash seed, so that sets of names have the same order in each run.
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )
    seeds = range(asked.seed, asked.seed + asked.seeds)
    began_at = time.monotonic()
    printed = report.SimulationReport()
    if asked.trace is not None:
        _replay(asked, printed)
    elif asked.workers == 1:
        for outcome in _work(asked, seeds):
            printed.add(outcome)
    else:
        for outcome in _side_by_side(asked, seeds):
            printed.add(outcome)
    printed.total(time.monotonic() - began_at)
    if printed.failures and asked.trace is None and not asked.no_shrink:
        _explain(asked, printed)
    return 1 if printed.failures else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="number of worlds")
    parser.add_argument("--minutes", type=int, default=480, help="simulated minutes of each world")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--workers", type=int, default=1, help="number of processes side by side")
    parser.add_argument("--no-shrink", action="store_true", help="only names failures")
    parser.add_argument("--trace", type=Path, help="runs the actions of a file instead")
    parser.add_argument("--save", type=Path, help="writes the shortest trace to a file")
    return parser.parse_args()


def _work(asked: argparse.Namespace, seeds: range) -> Iterator[RunOutcome]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with laboratory() as lab:
        for seed in seeds:
            minutes, mix = world_of(seed, asked.minutes)
            yield lab.run(seed, minutes, mix=mix)


def _side_by_side(asked: argparse.Namespace, seeds: range) -> Iterator[RunOutcome]:
    """Yields outcomes as they arrive. Every worker takes its seeds in turn."""
    workers = []
    connections: list[Connection] = []
    for index in range(asked.workers):
        receiving, sending = multiprocessing.Pipe(duplex=False)
        own = range(seeds.start + index, seeds.stop, asked.workers)
        worker = multiprocessing.Process(target=_worker, args=(asked, own, sending))
        worker.start()
        sending.close()
        workers.append(worker)
        connections.append(receiving)
    while connections:
        for ready in multiprocessing.connection.wait(connections):
            assert isinstance(ready, Connection)
            try:
                yield ready.recv()
            except EOFError:
                connections.remove(ready)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0, "a worker has died"


def _worker(asked: argparse.Namespace, seeds: range, sending: Connection) -> None:
    for outcome in _work(asked, seeds):
        failure = outcome.failure
        if failure is not None:
            # A traceback cannot be pickled. The complaint says where the failure was.
            outcome.named = outcome.complaint
            outcome.failure = AssertionError(str(failure)[:2_000])
        sending.send(outcome)
    sending.close()


def _explain(asked: argparse.Namespace, printed: report.SimulationReport) -> None:
    """Shrinks the first failure, and prints it."""
    with laboratory() as lab:
        seed = min(printed.failures)
        minutes, mix = world_of(seed, asked.minutes)
        first = lab.run(seed, minutes, mix=mix)
        if first.failure is None:
            printed.say(f"seed {seed} does not fail again: its runs differ")
            return
        shortest = shrunken(first, failing(lab, first, mix=mix))
        printed.failure(shortest)
        if asked.save is not None:
            report.save(asked.save, shortest)


def _replay(asked: argparse.Namespace, printed: report.SimulationReport) -> None:
    seed, actions = report.load(asked.trace)
    with laboratory() as lab:
        outcome = lab.run(seed, 0, actions=actions, mix=world_of(seed, 0)[1])
    printed.add(outcome)
    if outcome.failure is not None:
        printed.failure(outcome)


if __name__ == "__main__":
    sys.exit(main())
