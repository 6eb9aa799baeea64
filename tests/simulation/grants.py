"""The auditor's part for grants: sizes, sessions, and who is notified.

DESIGN section 2 says how long a grant is. It is to the end of the minute and a margin; shorter,
where a counter runs low that other sessions draw on; the whole rest, where no other session does. A
session that lacks what others merely hold waits for it, and exactly those others are recalled. This
module computes all of that again from the counters as a step left them.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from protocol.metering.quota import Offer
from protocol.metering.session import Grant
from protocol.metering.steps import Step
from storage.redis.live import Live, StepOutcome
from tests.simulation.virtual_cluster import VirtualCluster

FIGURES = ("balance", "held", "reserved", "burn")


class Counter(NamedTuple):
    """A limited month counter, as a session's step found it."""

    name: str
    month: str
    is_current: bool
    left: int
    """Minutes that no session has begun."""
    held: int
    """Minutes that other sessions hold."""
    own: int
    """Minutes that the session holds and has not begun."""
    active: int

    @property
    def room(self) -> int:
        """Minutes that no other session has begun or holds."""
        return self.left - self.held

    def lacks(self, minutes: int, room: int) -> bool:
        """Whether minutes have no room; the session's own minutes need none."""
        return minutes > self.own and minutes > room


class Deal(NamedTuple):
    """A step sent alone, its answer, and what there was to grant."""

    step: Step
    outcome: StepOutcome
    balance: int
    """The account's balance in micro-credits, after the step's charge."""
    held: int
    """What the account's other sessions hold, and what is reserved, in micro-credits."""
    reserved: int
    burn: int
    counters: tuple[Counter, ...]
    told: tuple[tuple[str, dict[str, Any]], ...]
    """Messages that the step published: the kind of the channel, and the message."""
    others: frozenset[str]
    """The other processes that have sockets of the session."""
    is_watched: bool

    @property
    def room(self) -> int:
        """Micro-credits that no other session holds."""
        return self.balance - self.held

    @property
    def granted(self) -> Grant:
        """The session's grant after the step, if made; otherwise before it."""
        reply = self.outcome.reply
        assert reply is not None
        return self.step.before.grant if reply.session is None else reply.session.grant


def deal_of(
    live: Live, cluster: VirtualCluster, step: Step, node: str, outcome: StepOutcome
) -> Deal:
    """Reads the counters of a step, right after its answer.

    ``node`` is the process in whose name the step was made: a dead one during a sweep.
    """
    identity, before, keys = step.before.identity, step.before.grant, live.keys
    tenant = identity.tenant
    months = sorted(_months(step))
    fields = [f"{part}:{month}" for month in months for part in ("used", "held")]
    account, sockets, watched, *found = cluster.redis.wire.ask_all([
        ("HMGET", keys.account(tenant, identity.account_id), *FIGURES),
        ("SMEMBERS", keys.sockets(tenant, identity.session_id)),
        ("HGET", keys.session(tenant, identity.session_id), "watched"),
        *(
            ("HMGET", key, "limit", "overage", "active", *fields)
            for key in (keys.member(tenant, identity.user_id), keys.organization(tenant))
        ),
    ])  # fmt: skip
    told = tuple(
        (channel.decode().split(":", 2)[1], json.loads(message))
        for channel, message in cluster.told
    )
    balance, held, reserved, burn = (int(figure or 0) for figure in account)
    is_made = outcome.reply is not None and outcome.reply.accepted
    after = before
    if is_made:
        assert outcome.reply is not None
        assert outcome.reply.session is not None
        after = outcome.reply.session.grant
    else:
        balance -= step.charge_micros
        burn += _burn(step) - _burn_before(step)
    counters = []
    for name, answer in zip(("member_minutes", "org_minutes"), found, strict=True):
        limit, overage, active, *figures = answer
        if not identity.terms.counts_minutes or overage == b"1" or limit in (None, b""):
            continue
        change = 0 if is_made else _is_active(step) - _was_active(step)
        for month, used, held_minutes in zip(months, figures[::2], figures[1::2], strict=True):
            begun = 0 if is_made else step.used_minutes.get(month, 0)
            counters.append(
                Counter(
                    name=name,
                    month=month,
                    is_current=month == step.month,
                    left=int(limit) - int(used or 0) - begun,
                    held=int(held_minutes or 0) - after.held_minutes.get(month, 0),
                    own=before.held_minutes.get(month, 0) - step.used_minutes.get(month, 0),
                    active=int(active or 0) + change,
                )
            )
    return Deal(
        step, outcome, balance, held - after.held_micros, reserved, burn, tuple(counters), told,
        frozenset(one.decode() for one in sockets) - {node}, watched is not None,
    )  # fmt: skip


def _months(step: Step) -> set[str]:
    months = {step.month, *step.used_minutes, *step.before.grant.held_minutes}
    for offer in (*step.offers, *([step.keep] if step.keep else [])):
        months.update(offer.grant.held_minutes, offer.more_minutes)
    return months


def _is_active(step: Step) -> bool:
    return step.standing.phase == "active"


def _was_active(step: Step) -> bool:
    return step.before.standing.phase == "active"


def _burn(step: Step) -> int:
    terms = step.before.identity.terms
    return terms.price_micros * terms.speed if _is_active(step) else 0


def _burn_before(step: Step) -> int:
    terms = step.before.identity.terms
    return terms.price_micros * terms.speed if _was_active(step) else 0


def check(deal: Deal) -> None:
    """Raises ``AssertionError`` for a grant or message that DESIGN forbids."""
    reply = deal.outcome.reply
    assert reply is not None
    if reply.accepted:
        _check_granted(deal)
        _check_news(deal)
        _check_moved(deal)
    elif reply.refused_by is not None:
        _check_not_granted(deal, reply.refused_by)


# --- What is granted --------------------------------------------------------------------


def _lacking(deal: Deal, offer: Offer) -> str | None:
    """The limit that has no room for an offer, if any."""
    if 0 < offer.grant.held_micros > deal.room:
        return "credits"
    return _short(deal, offer.grant.held_minutes)


def _short(deal: Deal, minutes: Mapping[str, int]) -> str | None:
    for counter in deal.counters:
        if counter.lacks(minutes.get(counter.month, 0), counter.room):
            return counter.name
    return None


def _used_up(deal: Deal, offer: Offer) -> set[str]:
    """The limits without room for an offer, even with no other holders."""
    found = {
        counter.name
        for counter in deal.counters
        if counter.lacks(offer.grant.held_minutes.get(counter.month, 0), counter.left)
    }
    # Where more is held than there is, no session gives back the excess.
    free = max(deal.room, deal.balance - deal.reserved)
    return found | ({"credits"} if 0 < offer.grant.held_micros > free else set())


def _may_have(deal: Deal, offer: Offer) -> bool:
    """Whether the counters are low, or not, as the offer requires."""
    if not offer.floor_ms:
        return True  # the shortest offers require nothing
    terms = deal.step.before.identity.terms
    low_minutes = offer.floor_ms / 60_000
    is_low = is_shared = False
    if terms.price_micros and deal.balance < deal.burn * low_minutes:
        is_low, is_shared = True, deal.burn > _burn(deal.step)
    for counter in deal.counters:
        if counter.is_current and counter.left < counter.active * low_minutes:
            is_low, is_shared = True, is_shared or counter.active > 1
    return is_low and not is_shared if offer.rest else not is_low


def _best(deal: Deal) -> Offer | None:
    return next(
        (one for one in deal.step.offers if _may_have(deal, one) and not _lacking(deal, one)), None
    )


def _check_granted(deal: Deal) -> None:
    """A grant is the longest possible offer, else what the session keeps."""
    expected = _best(deal) or deal.step.keep
    wanted = expected.grant if expected is not None else Grant()
    granted = deal.granted
    assert (granted.granted_ms, granted.held_micros, granted.held_minutes) == (
        wanted.granted_ms,
        wanted.held_micros,
        wanted.held_minutes,
    ), (deal, wanted)
    if expected is not None and expected.part and not deal.step.insists:
        # A part of a gap is granted only when others have given back what they do not need.
        assert deal.held <= deal.reserved or _missed(deal) != "credits", deal


def _missed(deal: Deal) -> str | None:
    """The limit that the shortest of the too long offers lacks."""
    lacked = None
    for offer in deal.step.offers:
        if _may_have(deal, offer):
            missing = _lacking(deal, offer)
            if missing is None:
                break
            lacked = missing
    return lacked


def _check_not_granted(deal: Deal, limit: str) -> None:
    """A session without a grant is refused or waits.

    It is refused where nothing is left. It waits where other sessions hold what it lacks. These are
    recalled, and no others.
    """
    least, best = deal.step.offers[-1], _best(deal)
    if best is not None:
        # A part of a gap is possible, but others may give back more of it.
        assert deal.outcome.held, deal
        assert best.part, deal
        assert limit == "credits", deal
        assert deal.held > deal.reserved, deal
        least = deal.step.offers[deal.step.offers.index(best) - 1]
    else:
        used_up = _used_up(deal, least)
        assert bool(used_up) != deal.outcome.held, (deal, used_up)
        assert deal.outcome.held or limit in used_up, (deal, used_up)
    expected: list[tuple[str, dict[str, Any]]] = []
    if deal.outcome.held and not deal.step.recalled:
        if 0 < least.grant.held_micros > deal.room:
            expected.append(("channel", {"recall": True}))
        for counter in deal.counters:
            if counter.lacks(least.grant.held_minutes.get(counter.month, 0), counter.room):
                expected.append(("limits", {"recall": counter.name}))
                if counter.name == "member_minutes":
                    expected[-1][1]["user_id"] = deal.step.before.identity.user_id
    assert list(deal.told) == expected, (deal, expected)


# --- Messages to others ---------------------------------------------------------------------


def _check_news(deal: Deal) -> None:
    """Steps notify an account's processes of freed credits and shown changes.

    A claim that does neither publishes nothing. Processes of a month are notified when there are
    minutes again.
    """
    step, granted = deal.step, deal.granted
    before, after = step.before.standing, step.standing
    is_over = after.phase == "ended"
    frees = step.charge_micros + granted.held_micros < step.before.grant.held_micros
    is_moved = (before.phase == "active") != (after.phase == "active")
    is_moved |= before.free_ms != after.free_ms
    if after.phase == "active":
        is_moved |= before.run_at != after.run_at
    else:
        is_moved |= before.elapsed_ms != after.elapsed_ms
    is_news = frees or is_over or is_moved
    assert (deal.outcome.change is not None) == is_news, deal
    recalls = granted.final == "credits" and deal.held > deal.reserved
    told = [message for kind, message in deal.told if kind == "channel"]
    assert len(told) <= 1, deal
    for message in told:
        assert (message["bumped"], message["recall"]) == (is_news, recalls), deal
        has_line = bool(message.get("line"))
        assert has_line == (is_news and not is_over), deal
    assert told or not (is_news or recalls), deal
    frees_minutes = False
    for counter in deal.counters:
        used = step.used_minutes.get(counter.month, 0)
        was_held = step.before.grant.held_minutes.get(counter.month, 0)
        had = counter.room + used - was_held
        has = counter.room - granted.held_minutes.get(counter.month, 0)
        frees_minutes |= had <= 0 < has
    of_months: list[dict[str, Any]] = [{"freed": True}] if frees_minutes else []
    if any(_hold_more(deal, counter) for counter in deal.counters):
        of_months.append({"recall": granted.final})
        if granted.final == "member_minutes":
            of_months[-1]["user_id"] = step.before.identity.user_id
    assert [message for kind, message in deal.told if kind == "limits"] == of_months, deal


def _hold_more(deal: Deal, counter: Counter) -> bool:
    """Whether a month's last grant leaves others with minutes not begun.

    Each other active session needs the minute that it is in.
    """
    others = counter.active - _is_active(deal.step)
    return counter.name == deal.granted.final and counter.held > others


def _check_moved(deal: Deal) -> None:
    """A step is published exactly if another process has the session."""
    moved = [message for kind, message in deal.told if message.get("moved")]
    step = deal.step
    is_sure = not step.leaving and step.before.standing.grace_until is None
    if deal.others or deal.is_watched:
        assert moved, deal
    elif is_sure and step.standing.phase != "ended":
        assert not moved, deal
