"""The auditor's third part: whether the data of Redis agrees with itself.

This part reads nothing but the state of Redis, so it can also check after a loss, once everything
has been put back: how long each key is kept, what waits in the outbox, and whether the counters
agree with the sessions and holds that are there.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from protocol import limits
from storage import limits as storage_limits
from tests.simulation.state import State, minutes_counters, place_of
from tests.simulation.world import World

SETTLED_MS = 30_000
"""Time after a loss by which everything is put back."""


def check(state: State, now_ms: int, latest_ms: int) -> None:
    """Raises ``AssertionError`` for whatever does not agree.

    Call it only when everything is in its place. ``latest_ms`` is the latest time that the clock of
    Redis, which may be stepped, has ever shown.
    """
    _check_forgetting(state, now_ms, latest_ms)
    _check_outbox(state)
    _check_notices(state)
    _check_hold_ends(state)


# --- How long a key is kept -------------------------------------------------------------


def _check_forgetting(state: State, now_ms: int, latest_ms: int) -> None:
    """Live data has no expiry; other data expires, but not too early."""
    for kind in ("account", "member", "org", "free"):
        for name, fields in state.hashes[kind].items():
            is_alive = int(fields.get("live", 0)) > 0
            _check_key(state, latest_ms, kind, name, is_alive, storage_limits.ACCOUNT_IDLE_MS)
    for name, session in state.sessions.items():
        is_alive = session["standing"]["phase"] != "ended"
        for kind in ("session", "notices"):
            if kind == "session" or name in state.notices:
                _check_key(state, latest_ms, kind, name, is_alive, storage_limits.ACCOUNT_IDLE_MS)
    for name in state.notices:
        assert name in state.sessions, (name, state.notices[name])
    for name, hold in state.hashes["hold"].items():
        _check_key(
            state, latest_ms, "hold", name, hold["state"] == "open", storage_limits.HOLD_KEPT_MS
        )
    for key in (*state.remembered, *state.tracked, *state.passing):
        assert key in state.expiry, key
        assert now_ms < state.expiry[key], (key, now_ms)
    for name in state.hashes["operations"]:
        _check_key(state, latest_ms, "operations", name, False, storage_limits.ACCOUNT_IDLE_MS)


def _check_key(
    state: State, latest_ms: int, kind: str, name: str, is_alive: bool, kept_ms: int
) -> None:
    ends = [at for key, at in state.expiry.items() if key.partition(":")[2] == f"{kind}:{name}"]
    if is_alive and kind == "account" and ends:
        # The account was loaded while holds were open, and stays until the last of them expires.
        assert not any(field[:2] == "s:" for field in state.hashes[kind][name]), (name, ends)
        over = [
            int(hold["expires_at"])
            for hold in state.holds
            if f"{hold['tenant']}/{hold['account']}" == name
        ]
        assert ends[0] >= max(over, default=0), (name, ends, over)
    elif is_alive:
        assert not ends, (kind, name, ends)
    else:
        assert len(ends) == 1, (kind, name, state.expiry)
        # A clock that is stepped back changes the time of expiry, but not whether there is one.
        assert ends[0] <= latest_ms + kept_ms, (kind, name, ends, latest_ms)


# --- What waits -------------------------------------------------------------------------


def _check_outbox(state: State) -> None:
    """No waiting entry is below the watermark.

    Processes forget what is below.
    """
    for entry in state.outbox:
        partition = entry.partition("/")[0]
        mark = state.watermarks.get(partition)
        assert mark is None or place_of(entry) > place_of(f"{partition}/{mark}"), (entry, mark)


def _check_notices(state: State) -> None:
    """The newest notices are kept, each once and in order."""
    for name, notices in state.notices.items():
        assert len(notices) <= limits.NOTICES_KEPT_MAX, (name, len(notices))
        numbers = [notice["seq"] for notice in notices]
        assert numbers == sorted(set(numbers)), (name, notices)
        assert numbers[-1] <= state.sessions[name]["standing"]["seq"], (name, notices)


def _check_hold_ends(state: State) -> None:
    """The set of open holds by end has exactly the open holds.

    Expiry reads this set.
    """
    ends = {f"{hold['tenant']}/{hold['id']}": int(hold["expires_at"]) for hold in state.holds}
    assert state.hold_ends == ends, (state.hold_ends, ends)


# --- Projections ------------------------------------------------------------------------


def check_projections(state: State, world: World) -> None:
    """Every process shows an account's figures as Redis has them.

    This is so when nothing is on its way.
    """
    for node in world.nodes:
        for account in node.registry.accounts:
            projection = account.projection
            name = f"{projection.tenant}/{projection.account_id}"
            there = state.hashes["account"].get(name)
            if there is None or projection.version < 0:
                continue
            gross = int(there["balance"]) + int(there.get("charged_live", 0))
            expected = int(there.get("version", 0)), gross, int(there.get("reserved", 0))
            known = projection.version, projection.gross_micros, projection.reserved_micros
            assert known == expected, (node.name, name, known, there)


# --- Counters ---------------------------------------------------------------------------


def check_counters(state: State, recorded: Mapping[tuple[str, str], int]) -> None:
    """The counters are the sums of Redis's sessions and holds.

    An account that was loaded anew reserves the holds that were open in Postgres (``recorded``, by
    tenant and id), and names each hold that is not in Redis yet.
    """
    accounts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    months: defaultdict[str, Counter[str]] = defaultdict(Counter)
    lines: defaultdict[str, set[str]] = defaultdict(set)
    for session in state.live.values():
        identity, standing, grant = session["identity"], session["standing"], session["grant"]
        terms = identity["terms"]
        active = standing["phase"] == "active"
        name = f"{identity['tenant']}/{identity['account_id']}"
        line = f"s:{identity['session_id']}"
        # A session whose client counts its minutes has no burn line before a process meters it.
        if not session.get("tracked") or line in state.hashes["account"].get(name, {}):
            lines[name].add(identity["session_id"])
        accounts[name].update(
            held=grant["held_micros"],
            charged_live=standing["charged_micros"],
            live=1,
            burn=terms["price_micros"] * terms["speed"] if active else 0,
        )
        if terms["counts_minutes"]:
            for counter in minutes_counters(identity):
                months[counter].update(live=1, active=int(active))
                held = {f"held:{key}": value for key, value in grant["held_minutes"].items()}
                months[counter].update(held)
    for hold in state.holds:
        amount, account_name = int(hold["amount"]), f"{hold['tenant']}/{hold['account']}"
        is_named = f"h:{hold['id']}" in state.hashes["account"].get(account_name, {})
        if "unreserved" in hold and not is_named:
            continue
        accounts[account_name].update(held=amount, reserved=amount, holds=1, live=1)
    for name, account in state.hashes["account"].items():
        tenant = name.partition("/")[0]
        for field in account:
            named = state.hashes["hold"].get(f"{tenant}/{field[2:]}")
            is_over = field[:2] == "h:" and named is not None and named["state"] != "open"
            assert not is_over, (name, field, named)
            if field[:2] == "h:" and f"{tenant}/{field[2:]}" not in state.hashes["hold"]:
                amount = recorded[tenant, field[2:]]
                accounts[name].update(held=amount, reserved=amount, holds=1, live=1)
        where = (name, account, accounts[name])
        for part in ("held", "reserved", "charged_live", "burn", "live", "holds"):
            assert int(account.get(part, 0)) == accounts[name][part], (part, where)
        assert {part[2:] for part in account if part[:2] == "s:"} == lines[name], where
    for kind in ("member", "org"):
        for name, fields in state.hashes[kind].items():
            _check_month(fields, months[f"{kind}:{name}"], (kind, name))


def _check_month(counter: dict[str, str], expected: Counter[str], where: Any) -> None:
    found = {
        part: int(value)
        for part, value in counter.items()
        if part in ("live", "active") or part.startswith("held:")
    }
    for part in {*found, *expected}:
        assert found.get(part, 0) == expected[part], (where, part, counter, expected)
    assert set(expected) - {part for part, value in expected.items() if not value} <= set(found)
