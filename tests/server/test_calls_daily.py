"""The third adapter: under 150 lines, with the whole interface."""

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.rate_card import parse_rate_card
from server.calls import daily
from server.calls import limits as call_limits
from server.calls.billing import Billing
from server.calls.daily import DailyAdapter
from server.calls.facts import Adapter, CallRun, Fact, FactKind, ProviderError, RefusedEventError
from server.calls.mapping import CallPlan, PlannedParticipant, billing_of
from server.calls.rest import RestClient
from tests.calls.fake_calls import FakeCalls
from tests.calls.site import ProviderSite, served

NOW_MS = 1_790_000_000_000
NOW_S = NOW_MS / 1000
KEY = b"k" * 32
SECRET = base64.b64encode(KEY).decode()
RUN = CallRun(call="maths", call_session="maths")


def adapter_at(url: str) -> DailyAdapter:
    return DailyAdapter(SECRET, "daily-key", RestClient("daily", url), lambda: NOW_MS)


def event(event_type: str, event_ts: float = NOW_S, **payload: Any) -> dict[str, Any]:
    return {
        "version": "1.0.0", "type": event_type, "id": f"{event_type}-{event_ts}",
        "payload": {"room": "maths", **payload}, "event_ts": event_ts,
    }  # fmt: skip


def signed(value: Any, sent: str = "1790000000000") -> tuple[dict[str, str], bytes]:
    body = json.dumps(value).encode()
    digest = hmac.new(KEY, sent.encode() + b"." + body, hashlib.sha256).digest()
    signature = base64.b64encode(digest).decode()
    return {"x-webhook-timestamp": sent, "x-webhook-signature": signature}, body


def facts_of(value: Any, now_ms: int = NOW_MS) -> list[Fact]:
    adapter: Adapter = adapter_at("http://127.0.0.1:1")
    headers, body = signed(value)
    adapter.verify(headers, body, now_ms)
    return adapter.facts(body)


def test_it_needs_under_150_lines() -> None:
    assert len(Path(daily.__file__).read_text("utf-8").splitlines()) < 150


def test_a_room_s_events_are_its_facts() -> None:
    person: dict[str, Any] = {
        "user_id": "ann", "session_id": "s-1", "joined_at": NOW_S + 1, "user_name": "Ann",
    }  # fmt: skip
    found = [
        *facts_of(event("meeting.started", start_ts=NOW_S, meeting_id="m")),
        *facts_of(event("participant.joined", NOW_S + 2, **person)),
        *facts_of(event("participant.left", NOW_S + 70, duration=61.419, **person)),
        *facts_of(event("meeting.ended", start_ts=NOW_S, end_ts=NOW_S + 80, meeting_id="m")),
    ]
    assert [(fact.kind, fact.at_ms - NOW_MS) for fact in found] == [
        (FactKind.STARTED, 0), (FactKind.JOINED, 1_000), (FactKind.JOINED, 1_000),
        (FactKind.LEFT, 62_419), (FactKind.ENDED, 80_000),
    ]  # fmt: skip
    assert [fact.provider_duration_ms for fact in found] == [None, None, None, 61_419, None]
    assert {(fact.call, fact.call_session) for fact in found} == {("maths", "maths")}
    assert {fact.participant for fact in found[1:4]} == {"ann"}
    assert len({fact.key for fact in found}) == 5
    (_, left) = facts_of(event("participant.left", NOW_S + 70, **person))
    assert (left.at_ms - NOW_MS, left.provider_duration_ms) == (70_000, None)


def test_a_guest_is_a_participant_of_a_stable_name_that_is_no_user_of_ours() -> None:
    guest: dict[str, Any] = {"user_id": None, "session_id": "s-1", "joined_at": NOW_S}
    found = [
        *facts_of(event("participant.joined", **guest)),
        *facts_of(event("participant.left", NOW_S + 70, duration=60, **guest)),
    ]
    assert [(fact.kind, fact.participant, fact.device) for fact in found] == [
        (FactKind.JOINED, "guest s-1", "s-1"), (FactKind.JOINED, "guest s-1", "s-1"),
        (FactKind.LEFT, "guest s-1", "s-1"),
    ]  # fmt: skip
    rates = parse_rate_card({"kinds": {"call": {"credits_per_minute": "1", "clock": "provider"}}})
    assert billing_of("guest s-1", None, {}, rates) == "bad_user_id"
    plan = CallPlan(participants={"guest s-1": PlannedParticipant(user_id="eve")})
    assert isinstance(billing_of("guest s-1", plan, {}, rates), Billing)


def test_events_without_a_meaning_are_no_facts() -> None:
    assert facts_of(event("recording.started")) == []
    assert facts_of({"test": "test"}) == []  # Daily's check of a new webhook


def test_forged_altered_and_old_events_are_refused() -> None:
    adapter = adapter_at("http://127.0.0.1:1")
    headers, body = signed(event("meeting.started", start_ts=NOW_S))
    adapter.verify(headers, body, NOW_MS)
    moved = {**headers, "x-webhook-timestamp": "1790000000001"}
    late_ms = NOW_MS + call_limits.CALL_EVENT_AGE_MS_MAX + 1
    cases: list[tuple[dict[str, str], bytes, int, str]] = [
        (headers, body + b" ", NOW_MS, "event_forged"),
        (moved, body, NOW_MS, "event_forged"),
        ({}, body, NOW_MS, "event_forged"),
        (headers, body, late_ms, "event_ancient"),
        (*signed({"type": "meeting.started"}), NOW_MS, "event_malformed"),
    ]
    for given, altered, now_ms, code in cases:
        with pytest.raises(RefusedEventError) as refused:
            adapter.verify(given, altered, now_ms)
        assert refused.value.code == code
    for payload in ({"room": None}, {"room": 5}, {"start_ts": None}, {"start_ts": "soon"}):
        with pytest.raises(RefusedEventError) as refused:
            facts_of(event("meeting.started", **payload))
        assert refused.value.code == "event_malformed"


@pytest.fixture
def site() -> Iterator[ProviderSite]:
    with served(FakeCalls(NOW_MS)) as made:
        yield made


@pytest.fixture
async def adapter(site: ProviderSite) -> AsyncIterator[DailyAdapter]:
    made = adapter_at(f"{site.url}/v1")
    yield made
    made._client.close()


def meetings(**changes: Any) -> bytes:
    person = {"user_id": "ann", "participant_id": "s-1", "join_time": NOW_S, "duration": 60}
    guest = {**person, "user_id": None, "participant_id": "s-2"}
    meeting = {
        "id": "m", "room": "maths", "start_time": NOW_S, "duration": 90, "ongoing": False,
        "max_participants": 2, "participants": [person, guest, person], **changes,
    }  # fmt: skip
    return json.dumps({"total_count": 1, "data": [meeting]}).encode()


async def test_its_rest_tells_the_truth_and_ends(site: ProviderSite, adapter: DailyAdapter) -> None:
    site.fixed = (200, {}, meetings())
    truth = await adapter.sweep(RUN)
    assert (truth.started_at_ms, truth.ended, truth.has_history) == (NOW_MS, True, True)
    assert [one.to_at_ms for one in truth.presences] == [NOW_MS + 60_000] * 3
    assert truth.durations_ms == {"ann": 120_000, "guest s-2": 60_000}
    site.fixed = (200, {}, meetings(ongoing=True))
    truth = await adapter.sweep(RUN)
    assert not truth.ended
    assert [one.to_at_ms for one in truth.presences] == [None] * 3
    site.asked.clear()
    await adapter.end(RUN, "ann")
    await adapter.end(RUN, "guest s-2")
    await adapter.end(RUN, None)
    assert site.asked == ["POST /v1/rooms/maths/eject"] * 2 + ["POST /v1/rooms/maths"]
    assert [json.loads(body) for body in site.bodies[-3:-1]] == [
        {"user_ids": ["ann"]}, {"ids": ["s-2"]},
    ]  # fmt: skip
    site.fixed = (500, {}, b"{}")
    with pytest.raises(ProviderError):
        await adapter.end(RUN, "ann")
    # A meeting that is not listed yet, or a site that is not Daily's, ends no call.
    for answer in (
        b"",
        b"[]",
        b"{}",
        b'{"data":[]}',
        b'{"data":5}',
        meetings(participants=[{"user_id": "ann"}]),
    ):
        site.fixed = (200, {}, answer)
        with pytest.raises(ProviderError):
            await adapter.sweep(RUN)
    for answer in (b"{}", b"<html>not here</html>"):
        site.fixed = (404, {}, answer)
        with pytest.raises(ProviderError):
            await adapter.sweep(RUN)
