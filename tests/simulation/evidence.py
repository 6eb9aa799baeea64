"""The auditor's other half: records, receipts, and the messages that clients received.

Like ``auditor``, this module follows from DESIGN section 1 and PROTOCOL section 1 alone.
"""

import itertools
from collections import Counter, defaultdict
from typing import Any

import msgspec

from protocol import limits
from protocol.metering.session import Identity
from protocol.metering.steps import Step
from tests.simulation.auditor import Auditor
from tests.simulation.clients import FOUND_OUT_MS, NEVER, SessionLog
from tests.simulation.state import MINUTE_MS, State, billed_ms, cost_micros, counted_ms, month
from tests.simulation.told_notices import check_notices
from tests.simulation.world import World

Segments = list[tuple[int, int]]


def check(auditor: Auditor, state: State) -> None:
    """Checks everything that was sent and recorded since the last audit."""
    world = auditor.world
    if not auditor.is_blind:
        assert auditor.started == {*auditor.closed, *state.sessions}, (
            auditor.started,
            list(state.sessions),
        )
        for name, session in state.sessions.items():
            if name not in auditor.closed:
                _check_session(auditor, state, name, session)
        _check_credits(auditor, state)
        if not world.losses:
            _check_numbers(state)
        for at, step, then in world.stops:
            _check_stop(at, step, then, world)
        for at, limit, step, then in world.refused():
            _check_refusal(at, limit, step, then)
        for transfer, then in auditor.money_client.refusals:
            _check_short(world.now, transfer.micros, transfer.person.account, then)
    world.stops.clear()
    world.given_back.clear()
    world.refused()
    auditor.money_client.refusals.clear()
    auditor.close(state)


def _check_numbers(state: State) -> None:
    """A user's live sessions of a kind stay within the kind's bound."""
    live: Counter[tuple[str, str, str, int]] = Counter()
    for session in state.sessions.values():
        identity = session["identity"]
        most = identity["terms"].get("max_live_sessions", 0)
        if most and session["standing"]["phase"] != "ended":
            live[identity["tenant"], identity["user_id"], identity["kind"], most] += 1
    for (*name, most), number in live.items():
        assert number <= most, (name, number, most)


def _check_session(auditor: Auditor, state: State, name: str, session: dict[str, Any]) -> None:
    world, minutes = auditor.world, auditor.minutes[name]
    check_minutes(session, minutes, auditor.zone(session["identity"]))
    ended = auditor.ended.get(name)
    assert (ended is not None) == (session["standing"]["phase"] == "ended"), name
    if ended is not None:
        session_log = world.session_logs[session["identity"]["session_id"]]
        check_receipt(ended, minutes)
        if not session_log.disturbed:
            _check_segments(ended, session_log, state.notices.get(name, []), world)
    check_notices(state, name, world)


# --- Limits -----------------------------------------------------------------------------


def _check_stop(at: int, step: Step, state: State, world: World) -> None:
    """A session stops exactly where nothing is left, and not before.

    A local timer stops it then; what others give back at that instant comes after the stop."""
    identity, standing = step.before.identity, step.standing
    if world.session_logs[identity.session_id].disturbed:
        return
    terms: dict[str, Any] = msgspec.to_builtins(identity.terms)
    position_ms, limit = standing.elapsed_ms, standing.limit
    where = (limit, at, identity, standing, _brief(at, state, identity))
    if limit == "session_cap":
        assert position_ms == terms["session_cap_ms"], where
    elif limit == "credits":
        so_far = cost_micros(terms, position_ms, standing.free_ms)
        more = cost_micros(terms, position_ms + 1, standing.free_ms) - so_far
        # A session uses an increment to its end, unless a billed gap was not covered.
        assert more > 0, where
        room = _room(at, state, identity) - (so_far - standing.charged_micros)
        room -= world.given_back[at, identity.tenant, identity.account_id]
        assert room < more, (room, more, where)
    else:
        assert position_ms % MINUTE_MS == 0, where
        assert _minutes_left(state, identity, str(limit)) <= 0, where


def _check_refusal(at: int, limit: str, step: Step, state: State) -> None:
    """A refused session had no room for another increment or minute."""
    identity, standing = step.before.identity, step.standing
    terms: dict[str, Any] = msgspec.to_builtins(identity.terms)
    if limit == "credits":
        next_ms = cost_micros(terms, standing.elapsed_ms + 1, standing.free_ms)
        # The time used so far is still in the balance: the step that charges it was refused.
        more = next_ms - step.before.standing.charged_micros
        # A session that costs nothing is not refused for want of credits.
        assert more > 0, (limit, step, state)
        assert _room(at, state, identity) < more, (limit, step, state)
    else:
        assert _minutes_left(state, identity, limit) <= 0, (limit, step, state)


def _check_short(now_ms: int, micros: int, account: tuple[str, str], state: State) -> None:
    """Refused operations had no credits beyond what sessions need to run on."""
    assert _room_of(now_ms, state, account, None) < micros, (micros, account, state)


def _room(now_ms: int, state: State, identity: Identity) -> int:
    return _room_of(now_ms, state, (identity.tenant, identity.account_id), identity.session_id)


def _room_of(now_ms: int, state: State, name: tuple[str, str], session_id: str | None) -> int:
    """What an account could give to a session or spend, in micro-credits.

    Others keep their last increment and what five seconds and one increment more need."""
    account = state.hashes["account"]["/".join(name)]
    room = int(account["balance"]) - int(account.get("reserved", 0))
    for other in state.live.values():
        theirs, standing = other["identity"], other["standing"]
        if (theirs["tenant"], theirs["account_id"]) != name:
            continue
        if theirs["session_id"] == session_id:
            continue
        if standing["phase"] != "active":
            room -= other["grant"]["held_micros"]  # used before a stop, not proven yet
            continue
        terms = theirs["terms"]
        until_ms = counted_ms(other, now_ms) + 5_000 + terms["next_increment_ms"]
        needed = cost_micros(terms, until_ms, standing["free_ms"]) - standing["charged_micros"]
        room -= min(other["grant"]["held_micros"], needed)
    return room


def _brief(now_ms: int, state: State, identity: Identity) -> list[Any]:
    """A session's account and all its sessions, to explain a failure."""
    account = state.hashes["account"][f"{identity.tenant}/{identity.account_id}"]
    sessions = [
        (other["identity"]["session_id"], other["identity"]["kind"], other["standing"]["phase"],
         counted_ms(other, now_ms), other["grant"], other["final"])
        for other in state.live.values()
        if other["identity"]["account_id"] == identity.account_id
    ]  # fmt: skip
    return [account, sessions]


def _minutes_left(state: State, identity: Identity, limit: str) -> int:
    """Minutes of a month that no session has begun or holds."""
    kind, name = "org", identity.tenant
    if limit == "member_minutes":
        kind, name = "member", f"{identity.tenant}/{identity.user_id}"
    counter = state.hashes[kind][name]
    first_days = {part.partition(":")[2] for part in counter if ":" in part}
    return min(
        (NEVER if counter.get("overage") == "1" else int(counter["limit"]))
        - int(counter.get(f"used:{first_day}", 0))
        - int(counter.get(f"held:{first_day}", 0))
        for first_day in first_days
    )


# --- Records ----------------------------------------------------------------------------


def _segments(session: dict[str, Any]) -> Segments:
    standing = session["standing"]
    segments: Segments = [(from_at, to_at) for from_at, to_at in standing["segments"]]
    if standing["phase"] == "active":
        segments.append((standing["run_at"], 2**53))
    return segments


def _instant(segments: Segments, counted: int) -> int | None:
    """The instant when counted time passed ``counted`` ms, or None."""
    for from_at, to_at in segments:
        if counted < to_at - from_at:
            return from_at + counted
        counted -= to_at - from_at
    return None


def check_minutes(session: dict[str, Any], rows: list[dict[str, Any]], zone: str) -> None:
    """Every minute is recorded once, with length, price and time of beginning."""
    identity, standing = session["identity"], session["standing"]
    terms, free_ms = identity["terms"], standing["free_ms"]
    where = (identity["session_id"], rows, standing)
    assert [row["minute"] for row in rows] == list(range(standing["minutes_kept"])), where
    segments = _segments(session)
    for row in rows:
        begin_ms = row["minute"] * MINUTE_MS
        end_ms = begin_ms + MINUTE_MS
        if standing["phase"] == "ended":
            end_ms = min(end_ms, standing["elapsed_ms"])
        assert row["seconds"] == -(-(end_ms - begin_ms) // 1000), where
        cost = cost_micros(terms, end_ms, free_ms) - cost_micros(terms, begin_ms, free_ms)
        assert row["credits_micros"] == cost, where
        assert row["started_at"] == _instant(segments, begin_ms), (where, segments)
        assert row["month"] == month(row["started_at"], zone), where
        assert row["counts"] == terms["counts_minutes"], where


def check_receipt(ended: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """The figures of a receipt explain each other."""
    terms, elapsed_ms = ended["terms"], ended["elapsed_ms"]
    segments: Segments = [(from_at, to_at) for from_at, to_at in ended["segments"]]
    assert sum(to_at - from_at for from_at, to_at in segments) == elapsed_ms, ended
    for (_, to_at), (from_at, _) in itertools.pairwise(segments):
        assert to_at <= from_at, ended
    paid_ms = max(0, elapsed_ms - ended["free_ms"])
    billed = billed_ms(paid_ms, terms["first_increment_ms"], terms["next_increment_ms"])
    assert ended["billed_ms"] == billed, ended
    assert ended["credits_micros"] == cost_micros(terms, elapsed_ms, ended["free_ms"]), ended
    assert ended["credits_micros"] == sum(row["credits_micros"] for row in rows), (ended, rows)
    assert ended["minutes"] == len(rows) == -(-elapsed_ms // MINUTE_MS), ended
    assert sum(row["seconds"] for row in rows) == -(-elapsed_ms // 1000), (ended, rows)
    assert (ended["limit"] is not None) == (ended["reason"] == "limit"), ended
    assert ended["started_at"] <= ended["ended_at"], ended


def _check_segments(
    ended: dict[str, Any], session_log: SessionLog, notices: list[dict[str, Any]], world: World
) -> None:
    """Requests, proofs and deaths bound each segment; a limit may end one."""
    asked = {at for at, _ in session_log.requests}
    stops = {notice["stopped_at"] for notice in notices if notice["type"] == "limit_reached"}
    proofs = {proof for _, proof in session_log.proofs}
    here = {client.alive_at for client in world.clients if session_log.session_id in client.joins}
    operator = {at for at, what in session_log.requests if what == "operator"}
    bills = session_log.terms.gap == "bill"

    def died(at: int) -> bool:
        """A process's death costs at most a second, in the user's favour."""
        return any(death - 1_000 <= at <= death for death in session_log.deaths)

    for index, (from_at, to_at) in enumerate(ended["segments"]):
        gap_from = bills and (from_at in proofs or died(from_at))
        returned = from_at in asked or _came_unnoticed(ended, from_at, session_log)
        returned = returned or _resumed_after_doubt(from_at, session_log)
        assert returned or gap_from, (ended, session_log)
        last = index == len(ended["segments"]) - 1
        by_operator = last and any(at - FOUND_OUT_MS <= to_at <= at + 1_000 for at in operator)
        following = [later for later, _ in ended["segments"][index + 1 : index + 2]]
        doubted = following and to_at == session_log.proven_before(following[0])
        doubted = doubted and _came_unnoticed(ended, following[0], session_log)
        known = doubted or to_at in asked | stops | proofs | here
        known = known or session_log.ended_behind_doubt(to_at)
        assert known or by_operator or died(to_at), (ended, session_log, notices)
    if ended["reason"] == "disconnected" and ended["segments"] and not session_log.deaths:
        end = ended["segments"][-1][1]
        latest = max(proofs)
        # A client that leaves, or pauses, in the instant of its return adds nothing.
        returns = {gap[1] for gap in ended["gaps"]}
        paused = {at for at, what in session_log.requests if what == "pause"}
        nothing = end in proofs and (latest in returns or max(returns, default=0) in paused)
        nothing = nothing or session_log.was_visited_in_doubt(end, latest)
        nothing = nothing or session_log.ended_behind_doubt(end)
        assert end == latest or nothing or end in asked | stops, (ended, session_log)
        assert end <= latest, (ended, session_log)


def _came_unnoticed(ended: dict[str, Any], from_at: int, session_log: SessionLog) -> bool:
    """Whether time of a kind without billed gaps restarts at a join.

    It may if the clients that were there had been cut, unnoticed. The gap must begin at their last
    proof of life, which must be old, and none of them may have answered a probe."""
    begun = [gap[0] for gap in ended["gaps"] if gap[1] == from_at and not gap[2]]
    came = any(begin == from_at for begin, _, _ in session_log.served)
    if len(begun) != 1 or not came:
        return False
    return session_log.is_doubtful(begun[0], from_at)


def _resumed_after_doubt(from_at: int, session_log: SessionLog) -> bool:
    """Whether time of a kind without billed gaps restarts after a doubt.

    Soon after a join, a pause and a resume behind it await an answer or ``DOUBT_WAIT_MS``."""
    for came, what in session_log.requests:
        paused = [
            at for at, what in session_log.requests if what == "pause" and came <= at <= from_at
        ]
        behind = [
            at for at, what in session_log.requests
            if what == "resume" and paused and paused[0] <= at < from_at
        ]  # fmt: skip
        is_old = session_log.proven_before(came) < came - limits.DOUBT_MS
        if session_log.terms.gap != "skip" or what != "join" or not (behind and is_old):
            continue
        answers = [at for at, begun in session_log.heard if begun < came <= at]
        if from_at == min([came + limits.DOUBT_WAIT_MS, *answers]):
            return True
    return False


# --- Messages ---------------------------------------------------------------------------


def _check_credits(auditor: Auditor, state: State) -> None:
    """Every process shows the balance: credits paid in less credits burnt."""
    world = auditor.world
    if not world.is_quiet:
        return
    burnt: defaultdict[tuple[str, str], int] = defaultdict(int)
    before: defaultdict[tuple[str, str], int] = defaultdict(int)
    for session in ({**auditor.closed, **state.sessions}).values():
        identity, standing = session["identity"], session["standing"]
        terms = identity["terms"]
        elapsed_ms = counted_ms(session, world.now)
        cost = cost_micros(terms, elapsed_ms, standing["free_ms"])
        burnt[identity["tenant"], identity["account_id"]] += cost
        elapsed_ms = counted_ms(session, world.now - limits.BURN_SUM_KEPT_MS)
        cost = cost_micros(terms, elapsed_ms, standing["free_ms"])
        before[identity["tenant"], identity["account_id"]] += cost
    for node in world.nodes:
        for account in node.registry.accounts:
            projection = account.projection
            key = projection.tenant, projection.account_id
            moved, perhaps = auditor.money_client.moved(key)
            shown = projection.credits_micros(world.now)
            expected = moved - burnt[key]
            most = expected
            if len(projection.lines) > limits.BURN_LINES_EXACT_MAX:  # the sum may be an old one
                most = moved - before[key]
            is_right = perhaps or expected <= shown <= most
            assert is_right, (node.name, key, shown, expected, state.sessions)
