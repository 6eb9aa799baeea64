"""Runs each scenario at full size (``scripts/torture``); prints a table."""

import argparse
import asyncio
import logging
import sys
import time
from dataclasses import dataclass, field

import structlog
import uvloop

from tests.benchmarks import machine
from tests.faults.bills import DEATH_S, Bill, compare
from tests.faults.scenarios import SCENARIOS
from tests.faults.testbed import FaultTestbed, open_testbed

RUN_S = 12.0
"""How long sessions run before a fault, and after it is over."""
HEADINGS = f"""
{"":<31}{"sessions":>9}{"lost their":>12}{"ended":>7}{"ticks again":>13}{"all written":>13}\
{"uncounted":>11}{"bills":>7}
{"scenario":<31}{"":>9}{"line":>12}{"early":>7}{"s, last":>13}{"after s":>13}\
{"s, most":>11}{"wrong":>7}  audit"""


@dataclass
class TortureOutcome:
    """The results of a fleet after its faults."""

    bills: list[Bill]
    problems: list[str]
    """Contradictions between the bills, the clients and the record."""
    audit: list[str]
    """Findings of the product's own audit."""
    ticking_s: list[float] = field(default_factory=list)
    """Seconds after each fault until the last session ticked again."""
    written_s: float = 0.0
    """Seconds after the last stop until Postgres had all records."""
    errors: set[str] = field(default_factory=set)
    """Codes of errors that clients received."""


async def strike(testbed: FaultTestbed, names: list[str], run_s: float = RUN_S) -> TortureOutcome:
    """Strikes a fleet with scenarios in turn, then compares its bills."""
    ticking_s = []
    for name in names:
        await asyncio.sleep(run_s)
        await SCENARIOS[name](testbed)
        ticking_s.append(max(await testbed.fleet.ticking(), default=0.0))
        testbed.check()
    await asyncio.sleep(run_s)
    receipts = await testbed.fleet.stop()
    stopped = time.monotonic()
    await testbed.environment.flushed()
    written_s = time.monotonic() - stopped
    seen = await testbed.fleet.testimonies()
    bills, problems = await compare(testbed, receipts, seen, DEATH_S + testbed.slack_s)
    audit = [line for line in await testbed.environment.audit() if "audited" not in line]
    testbed.check()
    errors = {code for one in seen for code in one["errors"]}
    return TortureOutcome(bills, problems, audit, ticking_s, written_s, errors)


async def run(names: list[str], sessions: int, show: int) -> bool:
    """Runs each scenario on its own testbed; returns whether nothing was wrong."""
    print(machine.describe())
    print(HEADINGS, flush=True)
    clean = True
    for name in names:
        async with open_testbed(sessions) as testbed:
            outcome = await strike(testbed, [name])
        bills = outcome.bills
        lost = sum(bill.losses > 0 for bill in bills)
        early = sum(bill.receipt["reason"] != "client" for bill in bills)
        most_s = max((bill.unbilled_s for bill in bills), default=0.0)
        verdict = " ".join(outcome.audit)
        print(
            f"{name:<31}{len(bills):>9}{lost:>12}{early:>7}{outcome.ticking_s[0]:>13.2f}"
            f"{outcome.written_s:>13.2f}{most_s:>11.2f}{len(outcome.problems):>7}  {verdict}",
            flush=True,
        )
        for problem in outcome.problems[:show]:
            print(f"    {problem}", flush=True)
        if outcome.errors:
            print(f"    clients were told: {', '.join(sorted(outcome.errors))}", flush=True)
        clean = clean and not outcome.problems and outcome.audit == ["everything adds up"]
    return clean


def main() -> None:
    """The command line of ``scripts/torture``."""
    parser = argparse.ArgumentParser(prog="scripts/torture", description=__doc__)
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="may be repeated")
    parser.add_argument("--show", type=int, default=5, help="how many problems are printed")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    names = arguments.scenario or list(SCENARIOS)
    sys.exit(not uvloop.run(run(names, arguments.sessions, arguments.show)))


if __name__ == "__main__":
    main()
