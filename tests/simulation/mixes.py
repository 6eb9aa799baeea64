"""Mixes: worlds where some actions happen far more often than by chance.

A mix changes how often each action is taken, what a world begins with, and some bounds, so that the
world reaches them within minutes. Worlds of a mix are short.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING
from unittest import mock

from storage import limits as storage_limits
from tests.simulation.people import CREDIT

if TYPE_CHECKING:
    from tests.simulation.chance import Chance

MIXES = ("", "losses", "busy", "money", "faults", "months", "losses", "full")
CROWD = "crowd"
"""A mix with one account and hundreds of sessions, which begin, lose their connections and end
together. A minute of such a world takes as long to run as hours of others."""
CROWD_EVERY = 50
"""When seeds are run in turn, one in this many is such a world."""
CROWD_MINUTES = 1
_SHORT_WAITS_MS = {1: 4, 999: 3, 1_000: 4, 5_000: 5, 12_345: 5, 30_000: 4, 60_000: 3, 180_000: 1}
_MONEY = {
    "pay": 12, "take": 2, "spend": 16, "hold": 12, "post": 9, "void": 6, "again": 8, "wait": 30,
}  # fmt: skip
_MORE = {
    "wait": 25, "report": 3, "poison": 0.5, "watch": 6, "look_away": 3, "intrude": 2, "forget": 1,
}  # fmt: skip
_LOSSES = {"empty": 1.5, "failover": 3, "mishap": 2, "kill": 1, "wait": 25}
_FAULTS = {
    "mishap": 8, "redis_away": 0.8, "postgres_away": 1, "drop_lines": 0.8, "kill": 1.5,
    "kill_flusher": 1, "step_clock": 2, "serve": 4, "slow_redis": 1, "wait": 25,
}  # fmt: skip


def world_of(seed: int, minutes: int) -> tuple[int, str]:
    """A seed's length and mix, where seeds run in turn."""
    if seed % CROWD_EVERY == 0:
        return min(minutes, CROWD_MINUTES), CROWD
    return minutes, ""


def stir(chance: "Chance", mix: str) -> None:
    """Gives a world a mix; "" changes nothing."""
    if not mix:
        return
    assert mix in (*MIXES, CROWD), mix
    random, everybody = chance.random, chance.everybody
    faults = [name for name in _FAULTS if name != "wait"] + ["empty", "failover"]
    faults += ["slow_redis", "short"]
    chance.weights |= _MORE | dict.fromkeys(faults, 0)
    chance.waits_ms = _SHORT_WAITS_MS
    chance.flush_ms = 30_000
    chance.nodes_max = random.randint(1, 3)
    chance.weights["serve"] = 3
    match mix:
        case "crowd":
            chance.people = [random.choice(everybody)]
            chance.kinds = [*random.sample(["second", "six", "chat", "lesson"], 2), "few"]
            chance.sessions_max = random.choice([60, 120, 300])
            chance.amounts = random.choice([[3 * CREDIT, 20 * CREDIT], [500 * CREDIT]])
            chance.waits_ms = {1: 4, 1_000: 4, 5_000: 5, 30_000: 4}
            chance.weights |= {"crowd": 40, "stampede": 8, "mishap": 1, "kill": 0.5, "pay": 30}
        case "busy":
            chance.weights |= {"kill": 1, "serve": 4, "step_clock": 1}
            chance.nodes_max = 3
            chance.kinds = random.choice([chance.kinds, ["pair", "day"], ["capped", "recording"]])
            chance.sessions_max = 6
        case "money":
            chance.weights |= _MONEY
            chance.people = [random.choice(everybody)]
        case "months":
            chance.weights |= {"limit": 8, "adjust": 4, "report": 8}
            chance.kinds = ["recording", "lesson"]
            chance.people = everybody[:2]
        case "faults":
            chance.weights |= _FAULTS | {"report": 4}
        case "losses":
            chance.weights |= _MONEY | _LOSSES | {"report": 4}
            if random.random() < 0.5:
                chance.kinds = random.sample(["recording", "lesson", "pair", "day", "six"], 3)
        case "full":
            chance.weights |= _MONEY | {"postgres_away": 3, "report": 6}


@contextlib.contextmanager
def bounds(mix: str) -> Iterator[None]:
    """Sets the bounds that worlds of a mix reach."""
    with contextlib.ExitStack() as stack:

        def bound(where: object, name: str, value: int) -> None:
            stack.enter_context(mock.patch.object(where, name, value))

        if mix:
            bound(storage_limits, "FLUSH_ACKNOWLEDGED_PER_STEP_MAX", 3)
        if mix in ("money", "full"):
            bound(storage_limits, "SPENDS_REMEMBERED_MS", 60_000)
            bound(storage_limits, "SPENDS_REMEMBERED_MIN", 4)
            bound(storage_limits, "ENTRIES_REMEMBERED_MIN", 4)
            bound(storage_limits, "HOLDS_PER_ACCOUNT_MAX", 4)
        if mix == "full":
            bound(storage_limits, "OUTBOX_ENTRIES_MAX", 25)
        yield
