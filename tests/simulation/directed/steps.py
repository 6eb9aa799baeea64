"""What directed worlds are made of."""

from typing import Any, NamedTuple

from tests.simulation.actions import Action
from tests.simulation.people import CREDIT
from tests.simulation.traces import FLUSHER, NODE, act, pay

OTHER = "node.1"
UNTIL_IT_IS_OLD = 45 * 60
"""Seconds after which nothing needs to be remembered any more."""


class Directed(NamedTuple):
    """What happens in a world, and the bounds that it has (``mixes``)."""

    actions: tuple[Action, ...]
    mix: str = ""


def hold(user: str, name: str, micros: int, ttl_ms: int = 3_600_000, **more: Any) -> Action:
    """Credits are held for an operation."""
    more = {"node": NODE, "kind": "hold", "user": user, "micros": micros, **more}
    return act("transfer", entry=f"hold:{name}", hold=name, ttl_ms=ttl_ms, **more)


def post(user: str, name: str, micros: int, entry: str = "", node: str = NODE) -> Action:
    """What was held is charged."""
    entry = entry or f"p-{name}"
    return act("transfer", node=node, kind="post", user=user, entry=entry, hold=name, micros=micros)


def void(user: str, name: str, entry: str = "", node: str = NODE) -> Action:
    """What was held is given back."""
    entry = entry or f"v-{name}"
    return act("transfer", node=node, kind="void", user=user, entry=entry, hold=name, micros=0)


def sketch(user: str, entry: str, micros: int = CREDIT // 4, often: int | None = None) -> Action:
    """An operation is charged at once, as often as a month allows."""
    return act(
        "transfer", node=NODE, kind="spend", user=user, entry=entry, micros=micros, often=often
    )


def ask(session: str, event: str, client: str = "") -> Action:
    """A client asks for something."""
    return act("ask", client=client or f"c-{session}", session=session, event=event)


def limit(minutes: int | None, user: str = "ann9", *, of_org: bool = False) -> Action:
    """A limit of the month is changed."""
    return act("limit", user=user, minutes=minutes, of_org=of_org)


def adjust(entry: str, minutes: int, user: str = "ann9", month: str = "2026-05-01") -> Action:
    """A month is corrected."""
    return act("adjust", node=NODE, user=user, entry=entry, minutes=minutes, month=month)


def report(session: str, minute_at: int, user: str = "ann9", node: str = NODE) -> Action:
    """A client reports a minute that it has counted itself."""
    return act("report", node=node, user=user, session=session, minute_at=minute_at)


BEGIN_AT = 1_780_265_833_911
"""When a world of ``SEED`` begins, with everybody there."""


def minute_at(number: int) -> int:
    """The beginning of a minute that a client counts itself: they end before the world is old."""
    return BEGIN_AT - 20 * 60_000 + number * 60_000


def told(client: str, kind: str, **fields: Any) -> Action:
    """What a client must have been told last of a kind."""
    return act("expect", client=client, type=kind, **fields)


def answered(entry: str, state: str) -> Action:
    """What a transfer must have been answered."""
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
    """Somebody watches a session."""
    return act("watch", client=client, node=node, session=session)


HIDDEN = [["none"]] * 3
"""Questions before the one that something happens to."""

RICH = pay("cat9", 50 * CREDIT)
