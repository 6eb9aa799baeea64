"""The building blocks of directed worlds."""

from typing import Any, NamedTuple

from tests.simulation.actions import Action
from tests.simulation.people import CREDIT
from tests.simulation.traces import FLUSHER, NODE, act, pay

OTHER = "node.1"
UNTIL_IT_IS_OLD = 45 * 60
"""Seconds after which no entry needs to be remembered any more."""


class Directed(NamedTuple):
    """A world's actions, and the mix that sets its bounds (``mixes``)."""

    actions: tuple[Action, ...]
    mix: str = ""


def hold(user: str, name: str, micros: int, ttl_ms: int = 3_600_000, **more: Any) -> Action:
    """A backend holds credits for an operation."""
    more = {"node": NODE, "kind": "hold", "user": user, "micros": micros, **more}
    return act("transfer", entry=f"hold:{name}", hold=name, ttl_ms=ttl_ms, **more)


def post(user: str, name: str, micros: int, entry: str = "", node: str = NODE) -> Action:
    """A backend charges a hold."""
    entry = entry or f"p-{name}"
    return act("transfer", node=node, kind="post", user=user, entry=entry, hold=name, micros=micros)


def void(user: str, name: str, entry: str = "", node: str = NODE) -> Action:
    """A backend gives a hold back."""
    entry = entry or f"v-{name}"
    return act("transfer", node=node, kind="void", user=user, entry=entry, hold=name, micros=0)


def sketch(user: str, entry: str, micros: int = CREDIT // 4, often: int | None = None) -> Action:
    """A backend charges an operation at once, within a monthly limit."""
    return act(
        "transfer", node=NODE, kind="spend", user=user, entry=entry, micros=micros, often=often
    )


def ask(session: str, event: str, client: str = "") -> Action:
    """A client sends a request."""
    return act("ask", client=client or f"c-{session}", session=session, event=event)


def limit(minutes: int | None, user: str = "ann9", *, of_org: bool = False) -> Action:
    """A limit of the month changes."""
    return act("limit", user=user, minutes=minutes, of_org=of_org)


def adjust(entry: str, minutes: int, user: str = "ann9", month: str = "2026-05-01") -> Action:
    """An operator corrects a month."""
    return act("adjust", node=NODE, user=user, entry=entry, minutes=minutes, month=month)


def report(session: str, minute_at: int, user: str = "ann9", node: str = NODE) -> Action:
    """A client reports a minute that it has counted itself."""
    return act("report", node=node, user=user, session=session, minute_at=minute_at)


BEGIN_AT = 1_780_265_833_911
"""When a world of ``SEED`` begins, with all its people."""


def minute_at(number: int) -> int:
    """The beginning of a reported minute.

    These minutes end soon after the world begins, at the latest.
    """
    return BEGIN_AT - 20 * 60_000 + number * 60_000


def told(client: str, kind: str, **fields: Any) -> Action:
    """The expected fields of a client's last message of a type."""
    return act("expect", client=client, type=kind, **fields)


def answered(entry: str, state: str) -> Action:
    """The expected outcome of a transfer."""
    return act("answered", entry=entry, state=state)


RECORDING = {"user": "ann9", "kind": "recording"}
AWAY = act("redis_away", ms=2_000)
LAG, FAILOVER, UNNOTICED = act("lag"), act("failover"), act("failover", unnoticed=True)
EMPTY, FLUSH, FORGET = act("empty"), act("flush"), act("forget")
SERVE = act("serve", node=OTHER)
NO_FLUSHER = act("kill", name=FLUSHER)


def elsewhere(session: str, user: str = "cat9", kind: str = "second", client: str = "") -> Action:
    """A session that another process serves."""
    client = client or f"c-{session}"
    return act("start", client=client, node=OTHER, user=user, kind=kind, session=session)


def join(client: str, session: str, node: str = OTHER, last_seq: int | None = None) -> Action:
    """A client joins a session."""
    return act("join", client=client, node=node, session=session, last_seq=last_seq)


def watch(client: str, session: str, node: str = OTHER) -> Action:
    """An observer watches a session."""
    return act("watch", client=client, node=node, session=session)


HIDDEN = [["none"]] * 3
"""Messages to Redis before the one that a fault hits."""

RICH = pay("cat9", 50 * CREDIT)
