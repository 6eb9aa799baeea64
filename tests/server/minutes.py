"""Minutes of the clock for tests that count them, on whatever day they are run."""

import datetime
from weakref import WeakKeyDictionary

from tests.fixtures.server import TestServer
from tests.server.api import advance

MINUTE_MS = 60_000
DAY_MS = 24 * 60 * MINUTE_MS


def keep_off_month_ends(server: TestServer) -> None:
    """What a test counts is to lie in one month, on whatever day the test is run."""
    now_ms = server.process.clock.now()
    days = (now_ms - 2 * DAY_MS, now_ms + 2 * DAY_MS)
    months = {datetime.datetime.fromtimestamp(at / 1000, datetime.UTC).month for at in days}
    if len(months) > 1:
        advance(server, 5 * DAY_MS)


BEGUN_AT: WeakKeyDictionary[TestServer, int] = WeakKeyDictionary()


def minute_at(server: TestServer, minutes_ago: int = 0) -> int:
    """The beginning of a minute of the clock, the same however long the test takes."""
    if server not in BEGUN_AT:
        keep_off_month_ends(server)
        BEGUN_AT[server] = server.process.clock.now() // MINUTE_MS * MINUTE_MS
    return BEGUN_AT[server] - minutes_ago * MINUTE_MS
