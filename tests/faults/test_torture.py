"""Every scenario of ``scripts/torture``, with fewer sessions and shorter outages.

``TAXIMETER_TORTURE=500`` runs as many sessions as the promise names.
"""

import os

import pytest

from tests.faults.scenarios import SCENARIOS
from tests.faults.testbed import open_testbed
from tests.faults.torture import strike

SESSIONS = int(os.environ.get("TAXIMETER_TORTURE", "60"))
SCALE = 0.05
"""An outage of a minute lasts three seconds here, in which thirty seconds are counted."""
RUN_S = 1.0
SLACK_S = 1.0
"""Allowed delay of a heartbeat: other programs load the machine as well."""
GROUPS = {
    "processes": ["kill-server", "freeze-server", "leave-frozen-server", "replace-servers"],
    "record": ["kill-flusher", "kill-postgres", "stop-postgres"],
    "live state": [
        "freeze-redis",
        "kill-redis",
        "stop-redis",
        "empty-redis",
        "empty-redis-and-stop-postgres",
    ],
}


def test_no_scenario_is_left_out() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(SCENARIOS)


@pytest.mark.parametrize("names", GROUPS.values(), ids=GROUPS.keys())
async def test_no_minute_is_lost_or_billed_twice(names: list[str]) -> None:
    async with open_testbed(SESSIONS, SCALE) as testbed:
        testbed.slack_s = SLACK_S
        outcome = await strike(testbed, names, RUN_S)
        assert outcome.problems == []
        assert outcome.audit == ["everything adds up"]
        assert len(outcome.bills) == SESSIONS
        assert len(outcome.ticking_s) == len(names)
        if "kill-server" in names:
            assert sum(bill.losses > 0 for bill in outcome.bills) >= SESSIONS // 3
        for worker in testbed.environment.workers:
            assert "Traceback" not in worker.log.read_text(), worker.log
