"""Stream's webhooks: signatures, facts of every event, keys, and what is refused."""

import json
from typing import Any

import pytest
from getstream.webhook import verify_and_parse_webhook, verify_webhook_signature
from hypothesis import given
from hypothesis import strategies as st

from server.calls import limits as call_limits
from server.calls.event_body import EventBody
from server.calls.facts import Fact, FactKind, RefusedEventError
from server.calls.rest import RestClient
from server.calls.stream import HINTS, SESSION_EVENTS, StreamAdapter
from server.calls.stream_rest import StreamRest
from tests.calls.fake_calls import SentWebhook
from tests.calls.fake_stream import API_KEY, SECRET, FakeStream

NOW_MS = 1_790_000_000_123


def adapter() -> StreamAdapter:
    client = RestClient("stream", "http://127.0.0.1:1")
    return StreamAdapter(SECRET, StreamRest(client, API_KEY, SECRET, lambda: NOW_MS))


def body_of(sent: SentWebhook) -> bytes:
    """The body as the endpoint unpacks it."""
    body = EventBody(sent.headers)
    body.add(sent.body)
    return body.finish()


def facts_of(sent: SentWebhook, now_ms: int = NOW_MS) -> list[Fact]:
    adapter().verify(sent.headers, body_of(sent), now_ms)
    return adapter().facts(body_of(sent))


def refusal(sent: SentWebhook, now_ms: int = NOW_MS) -> str:
    with pytest.raises(RefusedEventError) as refused:
        facts_of(sent, now_ms)
    return refused.value.code.value


@pytest.mark.parametrize("instants", ["rfc3339", "ns"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_call_s_events_are_its_facts(instants: Any, packed: bool) -> None:
    fake = FakeStream(NOW_MS, instants=instants, packed=packed)
    run = fake.start("default:maths", payer="host-1", org="acme")
    fake.now_ms += 1_000
    ann = fake.join(run, "ann")
    fake.now_ms += 61_500
    fake.leave(run, ann)
    fake.now_ms += 500
    fake.end(run)
    found = [facts_of(sent) for sent in fake.take()]
    started, joined, (rejoined, left), ended = found[0], found[1], found[2], found[3]
    common = {"provider": "stream", "call": "default:maths", "call_session": run.session}
    for fact in (*started, *joined, rejoined, left, *ended):
        assert {name: getattr(fact, name) for name in common} == common
    assert [(fact.kind, fact.at_ms) for fact in started] == [(FactKind.STARTED, NOW_MS)]
    assert started[0].custom == {"payer": "host-1", "org": "acme"}
    assert started[0].participant is None
    assert [(fact.kind, fact.at_ms) for fact in joined] == [(FactKind.JOINED, NOW_MS + 1_000)]
    assert (joined[0].participant, joined[0].device) == ("ann", ann.device)
    # A lost `joined` is in the `left` too.
    assert (rejoined.kind, rejoined.at_ms) == (FactKind.JOINED, joined[0].at_ms)
    assert rejoined.key != joined[0].key
    assert (left.kind, left.at_ms) == (FactKind.LEFT, NOW_MS + 62_500)
    assert left.provider_duration_ms == 61_000
    assert [(fact.kind, fact.at_ms) for fact in ended] == [(FactKind.ENDED, NOW_MS + 63_000)]
    assert not any(fact.wants_sweep for each in found for fact in each)


def test_members_are_not_presence_and_marked_calls_are_not_over() -> None:
    fake = FakeStream(NOW_MS, names="old")
    run = fake.start("default:maths", payer="host-1")
    ann = fake.join(run, "ann")
    fake.leave(run, ann)
    fake.send_marked(run)
    assert [json.loads(sent.body)["type"] for sent in fake.sent] == [
        "call.started", "call.member_joined", "call.member_left", "call.ended",
    ]  # fmt: skip
    for sent in fake.take():
        (fact,) = facts_of(sent)
        assert (fact.kind, fact.participant, fact.at_ms) == (FactKind.STARTED, None, NOW_MS)
        assert fact.call_session == run.session
        # The event says that something changed, so REST is asked what.
        assert fact.wants_sweep == (json.loads(sent.body)["type"] in HINTS)
    fake.now_ms += 5_000
    fake.end(run)
    call_ended = fake.take()[-1]
    assert json.loads(call_ended.body)["call"]["current_session_id"] == ""
    (fact,) = facts_of(call_ended)
    assert (fact.kind, fact.at_ms, fact.wants_sweep) == (FactKind.ENDED, NOW_MS + 5_000, True)


def test_a_deleted_call_is_over() -> None:
    fake = FakeStream(NOW_MS)
    run = fake.start("default:maths")
    fake.take()
    fake.now_ms += 5_000
    fake.send("call.deleted", call_cid=run.call, call=fake.call(run))
    (fact,) = facts_of(fake.take()[0])
    assert (fact.kind, fact.call_session) == (FactKind.ENDED, run.session)
    assert fact.at_ms == NOW_MS + 5_000


def test_the_creator_is_the_host() -> None:
    fake = FakeStream(NOW_MS)
    run = fake.start("default:maths", payer="host-1")
    run.creator = "teacher-1"
    fake.send_ended(run)
    (started,), (ended,) = (facts_of(sent) for sent in fake.take())
    assert started.custom == {"payer": "host-1"}
    assert ended.custom == {"payer": "host-1", "host": "teacher-1"}


def test_events_that_say_nothing_about_time_are_no_facts() -> None:
    fake = FakeStream(NOW_MS)
    run = fake.start("default:maths")
    added = fake.send("call.member_added", call_cid=run.call, call=fake.call(run), members=[])
    updated = fake.send("call.updated", call_cid=run.call, call=fake.call(run))
    assert facts_of(added) == facts_of(updated) == []
    # The call is marked as ended before anybody came: it has no session.
    nobody = {"type": "call.ended", "call_cid": "default:x", "created_at": NOW_MS * 1_000_000}
    assert facts_of(fake.signed(nobody)) == []
    nobody["type"] = "some.new_event"
    assert facts_of(fake.signed(nobody)) == []


def test_signatures_are_those_of_stream_s_sdk() -> None:
    fake = FakeStream(NOW_MS, packed=True, instants="ns")
    fake.start("default:maths")
    (sent,) = fake.take()
    assert verify_webhook_signature(body_of(sent), sent.headers["x-signature"], SECRET)
    parsed = verify_and_parse_webhook(sent.body, sent.headers["x-signature"], SECRET)
    assert parsed.call_cid == "default:maths"
    adapter().verify(sent.headers, body_of(sent), NOW_MS)


@given(
    st.binary(max_size=60),
    st.text(max_size=70) | st.text("0123456789abcdef", min_size=64, max_size=64),
    st.integers(0, 80),
)
def test_sdk_and_we_agree_on_every_signature(body: bytes, other: str, cut: int) -> None:
    fake = FakeStream(NOW_MS)
    right = fake.signed(body).headers["x-signature"]
    for signature in {right, right.upper(), right[:cut], right + "0", other}:
        try:
            adapter().verify({"x-signature": signature}, body, NOW_MS)
            code = "taken"
        except RefusedEventError as refused:
            code = refused.code.value
        by_sdk = signature.isascii() and verify_webhook_signature(body, signature, SECRET)
        assert (code != "event_forged") == by_sdk


def test_forged_and_altered_events_are_refused() -> None:
    fake = FakeStream(NOW_MS)
    fake.start("default:maths")
    (sent,) = fake.take()
    altered = sent._replace(body=sent.body.replace(b"maths", b"other"))
    assert refusal(altered) == "event_forged"
    assert refusal(sent._replace(headers={})) == "event_forged"
    for signature in ("", "0" * 64, sent.headers["x-signature"].upper(), "é", "\udc80"):
        assert refusal(sent._replace(headers={"x-signature": signature})) == "event_forged"


def test_an_age_bounds_what_is_taken() -> None:
    fake = FakeStream(NOW_MS)
    fake.start("default:maths")
    (sent,) = fake.take()
    assert facts_of(sent, NOW_MS + call_limits.CALL_EVENT_AGE_MS_MAX)
    assert refusal(sent, NOW_MS + call_limits.CALL_EVENT_AGE_MS_MAX + 1) == "event_ancient"
    assert facts_of(sent, NOW_MS - call_limits.CALL_EVENT_AHEAD_MS_MAX)
    assert refusal(sent, NOW_MS - call_limits.CALL_EVENT_AHEAD_MS_MAX - 1) == "event_ahead"


def test_the_key_is_of_the_signed_body_alone() -> None:
    fake = FakeStream(NOW_MS)
    run = fake.start("default:maths")
    ann = fake.join(run, "ann")
    fake.join(run, "ann")
    fake.join(run, "bob")
    fake.leave(run, ann)
    fake.now_ms += 1
    fake.join(run, "ann", ann.device)
    fake.end(run)
    fake.start("default:maths")
    sent = fake.take()
    keys = [adapter().event_key(body_of(each)) for each in sent]
    assert len(set(keys)) == len(keys)
    # A captured body under a fresh id is the same event.
    again = sent[1]._replace(headers={**sent[1].headers, "x-webhook-id": "fresh"})
    assert facts_of(again) == facts_of(sent[1])
    # So is one that was written anew: other order of fields, other form of the instants.
    event = json.loads(sent[1].body)
    event["created_at"] = (NOW_MS * 1_000 + 456) * 1_000
    event["participant"]["user"]["online"] = True
    assert adapter().event_key(json.dumps(event, indent=1, sort_keys=True).encode()) == keys[1]
    all_keys = [fact.key for each in sent for fact in adapter().facts(body_of(each))]
    assert len(set(all_keys)) == len(all_keys)
    assert all(len(key) <= 128 for key in all_keys)
    for each in sent:
        key = adapter().event_key(body_of(each))
        assert all(fact.key.startswith(key) for fact in adapter().facts(body_of(each)))


def test_instants_of_late_events_are_those_of_what_happened() -> None:
    fake = FakeStream(NOW_MS)
    run = fake.start("default:maths")
    late_ms = NOW_MS + 60_000
    event = json.loads(fake.take()[0].body)
    event["created_at"] = late_ms * 1_000_000
    (fact,) = facts_of(fake.signed(event))
    assert fact.at_ms == NOW_MS
    event["call"]["session"]["started_at"] = None
    (fact,) = facts_of(fake.signed(event))
    assert fact.at_ms == late_ms
    # Left and joined within one instant, and a clock that went backwards between them.
    ann = fake.join(run, "ann")
    ann.from_ms += 500
    fake.leave(run, ann)
    joined, left = facts_of(fake.take()[-1])
    assert (joined.at_ms, left.at_ms) == (NOW_MS + 500, NOW_MS + 500)


WRONG: dict[str, dict[str, Any]] = {
    "no instant": {"created_at": None},
    "an instant of text": {"created_at": "yesterday"},
    "no call": {"call_cid": ""},
    "a call that cannot be kept": {"call_cid": "default:\0"},
    "a long call": {"call_cid": "x" * 1_000},
    "no participant": {"participant": None},
    "a participant without a user": {"participant": {"user_session_id": "d"}},
    "a user without an id": {"participant": {"user": {}, "user_session_id": "d"}},
    "a participant without a device": {"participant": {"user": {"id": "ann"}}},
    "a participant of text": {"participant": "ann"},
    "a type of numbers": {"type": 5},
    "a duration of text": {"duration_seconds": "5"},
}


@pytest.mark.parametrize("changes", WRONG.values(), ids=WRONG)
def test_signed_nonsense_is_refused(changes: dict[str, Any]) -> None:
    fake = FakeStream(NOW_MS)
    run = fake.start("default:maths")
    fake.leave(run, fake.join(run, "ann"))
    event = json.loads(fake.take()[-1].body)
    assert facts_of(fake.signed(event))
    assert refusal(fake.signed({**event, **changes})) == "event_malformed"


@pytest.mark.parametrize("duration", [None, -1, 1e15])
def test_absurd_figures_are_no_figures(duration: float | None) -> None:
    fake = FakeStream(NOW_MS)
    run = fake.start("default:maths")
    fake.leave(run, fake.join(run, "ann"))
    event = json.loads(fake.take()[-1].body)
    _, left = facts_of(fake.signed({**event, "duration_seconds": duration}))
    assert left.provider_duration_ms is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
FIELDS = ("type", "created_at", "call_cid", "session_id", "call", "participant", "duration_seconds")


@given(
    st.sampled_from(sorted(SESSION_EVENTS.keys() | HINTS)),
    st.dictionaries(st.sampled_from(FIELDS), json_values),
    st.dictionaries(
        st.sampled_from(("cid", "current_session_id", "session", "custom")), json_values
    ),
)
def test_no_signed_body_breaks_the_adapter(
    event_type: str, fields: dict[str, Any], call: dict[str, Any]
) -> None:
    event = {
        "type": event_type, "created_at": NOW_MS * 1_000_000, "call_cid": "default:a",
        "session_id": "s", "call": call, **fields,
    }  # fmt: skip
    sent = FakeStream(NOW_MS).signed(event)
    try:
        facts = facts_of(sent)
    except RefusedEventError:
        return
    assert facts == facts_of(sent)
    for fact in facts:
        assert fact.at_ms > 0
        assert (fact.participant is None) == (fact.kind in (FactKind.STARTED, FactKind.ENDED))
