"""Mixes: worlds in which some things happen far more often than by chance alone.

A mix changes how often each action is taken, and what a world begins with. Worlds of a mix are
short: what takes hours elsewhere happens within minutes.
"""

from typing import TYPE_CHECKING

from tests.simulation.people import CREDIT

if TYPE_CHECKING:
    from tests.simulation.chance import Chance

MIXES = ("", "busy", "money", "months", "faults", "losses")
CROWD = "crowd"
"""One account with hundreds of sessions, which begin, lose their lines and end together. A minute
of it takes about as long as hours of others."""
CROWD_EVERY = 50
"""Of so many seeds that are run in turn one is such a world."""
CROWD_MINUTES = 1
_SHORT_WAITS_MS = {1: 4, 999: 3, 1_000: 4, 5_000: 5, 12_345: 5, 30_000: 4, 60_000: 3, 180_000: 1}
_MONEY = {
    "pay": 12, "take": 2, "spend": 16, "hold": 12, "post": 9, "void": 6, "again": 8, "wait": 30,
}  # fmt: skip
_LOSSES = {"empty": 1.5, "failover": 3, "mishap": 2, "kill": 1, "wait": 25}
_FAULTS = {
    "mishap": 8, "redis_away": 0.8, "postgres_away": 1, "drop_lines": 0.8, "kill": 1.5,
    "kill_flusher": 1, "step_clock": 0.5, "wait": 25,
}  # fmt: skip


def world_of(seed: int, minutes: int) -> tuple[int, str]:
    """How long the world of a seed is, and its mix, where seeds are run in turn."""
    if seed % CROWD_EVERY == 0:
        return min(minutes, CROWD_MINUTES), CROWD
    return minutes, ""


def stir(chance: "Chance", mix: str) -> None:
    """Makes a world one of the mix; "" leaves it as it is."""
    if not mix:
        return
    assert mix in (*MIXES, CROWD), mix
    random, everybody = chance.random, chance.everybody
    faults = [name for name in _FAULTS if name != "wait"] + ["empty", "failover"]
    chance.weights |= {"wait": 25} | dict.fromkeys(faults, 0)
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
        case "money":
            chance.weights |= _MONEY
            chance.people = [random.choice(everybody)]
        case "months":
            chance.weights |= {"limit": 8, "adjust": 4}
            chance.kinds = ["recording", "lesson"]
            chance.people = everybody[:2]
        case "faults":
            chance.weights |= _FAULTS
        case "losses":
            chance.weights |= _MONEY | _LOSSES
