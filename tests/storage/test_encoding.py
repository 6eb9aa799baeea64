"""Redis returns entries as they were written, old entries too."""

from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.metering.records import EntryPosted, HoldChanged, Record
from protocol.metering.session import Grant, SessionState
from protocol.metering.states import Event, Phase
from storage.redis.encoding import (
    appended_at,
    burn_line_at,
    burn_line_from,
    decided_at,
    decode_records,
    encode_burn_line,
    encode_grant,
    encode_step,
    made_at,
    month_of,
    remote_step_of,
    session_of,
)
from storage.redis.keys import Keys
from tests.protocol.bench import Bench, starting
from tests.protocol.examples import NOW, identity_of, standing_of, terms_of
from tests.protocol.examples import session_of as a_session
from tests.storage.examples import entry, minute

ENCODE = msgspec.json.encode


def fields_of(session: SessionState) -> list[bytes]:
    """A session's hash, as the scripts keep it."""
    return [
        ENCODE(session.identity), ENCODE(session.standing), encode_grant(session.grant).encode(),
        (session.grant.final or "").encode(), session.mark.encode(),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "session",
    [
        a_session(),
        a_session(terms_of(free_ms=5), counterpart_id="bob", metadata={"a": [1, None]}),
        a_session(grant=Grant(5, 6, {"2026-05-01": 2}, final="credits")),
        msgspec.structs.replace(a_session(standing=standing_of(Phase.PAUSED)), mark="node.7"),
    ],
)
def test_a_session_is_read_as_it_was_written(session: SessionState) -> None:
    assert session_of(fields_of(session)) == session
    assert session_of(fields_of(session)[:4]) == msgspec.structs.replace(session, mark="")
    other = identity_of(session_id="known")
    assert session_of(fields_of(session), other).identity is other


def test_sessions_with_the_same_terms_share_them() -> None:
    one, two = (session_of(fields_of(a_session(session_id=name))) for name in ("one", "two"))
    assert one.identity.terms is two.identity.terms


@given(
    elapsed_ms=st.integers(0, 2**40),
    at=st.integers(0, 2**42),
    free_ms=st.integers(0, 2**30),
    phase=st.sampled_from(Phase),
)
def test_a_line_is_read_as_it_was_written(
    elapsed_ms: int, at: int, free_ms: int, phase: Phase
) -> None:
    made = burn_line_at(
        identity_of(), standing_of(phase, elapsed_ms=elapsed_ms, at=at, free_ms=free_ms)
    )
    assert burn_line_from(encode_burn_line(made)) == made
    assert made.running is (phase is Phase.ACTIVE)


HOLD = HoldChanged(
    tenant="user:ann", account_id="ann", hold_id="h", state="open", amount_micros=1,
    posted_micros=0, operation=None, user_id="ann", month="2026-05-01", created_at=1,
    expires_at=9, changed_at=5,
)  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "decided", "made"),
    [
        ({b"r": ENCODE([minute(0)]), b"t": b"40", b"m": b"50"}, 40, 50),
        ({b"r": ENCODE([minute(0)]), b"t": b"40"}, 40, 40),
        ({b"r": ENCODE([entry(at_ms=30)])}, 30, 30),
        ({b"r": ENCODE([HOLD])}, 5, 5),
        ({b"r": ENCODE([minute(0)])}, 700, 700),
        ({b"r": b"[]"}, 700, 700),
        ({b"r": b"no records"}, 700, 700),
        ({}, 700, 700),
    ],
)
def test_when_an_entry_was_decided_and_made(
    fields: dict[bytes, bytes], decided: int, made: int
) -> None:
    assert appended_at(b"700-3") == 700
    assert decided_at(b"700-3", fields) == decided
    assert made_at(b"700-3", fields) == made


def test_records_are_told_apart_by_their_tags() -> None:
    records: list[Record] = [minute(0), entry(), HOLD]
    assert decode_records(ENCODE(records)) == records
    assert [type(one) for one in decode_records(ENCODE(records))][1:] == [EntryPosted, HoldChanged]


def test_a_month_of_an_earlier_version_has_nothing_held() -> None:
    assert month_of("2026-05-01", [b"", b"7", b"1"]).limit_minutes is None
    found = month_of("2026-05-01", [b"60", b"7", b"1", b"3"], 5)
    assert (found.limit_minutes, found.used_minutes, found.active) == (60, 7, 1)
    assert (found.held_minutes, found.as_of_us) == (3, 5)
    assert month_of("2026-05-01", [b"60", b"7", b"1"]).held_minutes == 0


def encoded(step: Any) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(encode_step(step, "node", "node.1", "PUBLISH", Keys(2)))
    return found


def test_only_a_start_contains_identity_and_line() -> None:
    start = encoded(starting().step)
    assert (start["version"], start["live_change"], start["active_change"]) == (0, 1, 1)
    assert msgspec.json.decode(start["identity"])["session_id"] == "chat-1"
    assert burn_line_from(start["line"]).running
    assert start["burn_change"] == start["burn"] == 1_000_000
    bench = Bench()
    bench.run(30_000)
    bench.alive()
    bench.run(31_000)
    claim = encoded(bench.step)
    assert "identity" not in claim
    assert "line" not in claim
    assert (claim["version"], claim["active_change"], claim["burn_change"]) == (1, 0, 0)
    assert claim["charge"] == claim["charged_live_change"] == bench.step.charge_micros > 0


def test_an_end_takes_the_session_off_its_account() -> None:
    bench = Bench()
    bench.run(5_000)
    bench.alive()
    bench.ask(Event.STOP)
    end = encoded(bench.step)
    assert (end["ended"], end["live_change"], end["active_change"]) == (True, -1, -1)
    assert (end["burn"], end["burn_change"], end["offers"]) == (0, -1_000_000, [])
    assert len(decode_records(end["records"].encode())) == 2
    assert "line" not in end


def test_the_message_of_a_step_contains_the_resulting_session() -> None:
    session = msgspec.structs.replace(a_session(grant=Grant(5, 6, final="credits")), mark="node.3")
    identity, standing, grant, final, mark = (part.decode() for part in fields_of(session))
    move = remote_step_of(
        {
            "moved": [identity, standing, grant, final], "mark": mark, "month": "2026-05-01",
            "months": [["60", "7", "1", "0"], ["", "9", "2", "0"]], "as_of": "12",
            "notices": ['{"seq":1}'], "minutes": [],
        }
    )  # fmt: skip
    assert move.session == session
    assert (move.notices, move.minutes) == ((b'{"seq":1}',), ())
    assert move.member is not None
    assert move.org is not None
    assert (move.member.limit_minutes, move.org.limit_minutes) == (60, None)
    assert move.org.as_of_us == 12
    assert session.standing.at == NOW
