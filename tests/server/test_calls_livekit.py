"""LiveKit's webhooks: tokens, facts of every event, machines, and what is refused."""

import base64
import hashlib
import json
import time
from typing import Any

import jwt
import pytest
from google.protobuf.json_format import MessageToJson
from hypothesis import given
from hypothesis import strategies as st
from livekit.api import AccessToken, TokenVerifier, VideoGrants, WebhookReceiver
from livekit.protocol.models import ParticipantInfo, ParticipantPermission
from livekit.protocol.webhook import WebhookEvent

from server import limits as server_limits
from server.calls import limits as call_limits
from server.calls.facts import Fact, FactKind, RefusedEventError
from server.calls.livekit import LiveKitAdapter
from server.calls.livekit_rest import LiveKitRest
from server.calls.rest import RestClient
from tests.calls.fake_calls import SentWebhook
from tests.calls.fake_livekit import API_KEY, SECRET, TOKEN_S, FakeLiveKit

NOW_MS = 1_790_000_000_123
LEEWAY_MS = server_limits.JWT_LEEWAY_MS


def adapter() -> LiveKitAdapter:
    client = RestClient("livekit", "http://127.0.0.1:1")
    return LiveKitAdapter(API_KEY, SECRET, LiveKitRest(client, API_KEY, SECRET, lambda: NOW_MS))


def facts_of(sent: SentWebhook, now_ms: int = NOW_MS) -> list[Fact]:
    adapter().verify(sent.headers, sent.body, now_ms)
    return adapter().facts(sent.body)


def refusal(sent: SentWebhook, now_ms: int = NOW_MS) -> str:
    with pytest.raises(RefusedEventError) as refused:
        facts_of(sent, now_ms)
    return refused.value.code.value


def with_token(sent: SentWebhook, token: str) -> SentWebhook:
    return sent._replace(headers={**sent.headers, "authorization": token})


def test_a_room_s_events_are_its_facts() -> None:
    fake = FakeLiveKit(NOW_MS)
    run = fake.start("maths room", payer="host-1")
    fake.now_ms += 1_000
    ann = fake.join(run, "ann")
    fake.now_ms += 61_500
    fake.leave(run, ann)
    fake.now_ms += 500
    fake.end(run)
    found = [facts_of(sent, sent.at_ms) for sent in fake.take()]
    (started,), (joined,), (rejoined, left), (ended,) = found
    for fact in (started, joined, rejoined, left, ended):
        assert (fact.provider, fact.call, fact.call_session) == (
            "livekit",
            run.session,
            run.session,
        )
        assert fact.rest_name == "maths room"
        assert fact.custom == {"payer": "host-1"}
        assert fact.provider_duration_ms is None
        assert not fact.wants_sweep
    assert (started.kind, started.at_ms, started.participant) == (FactKind.STARTED, NOW_MS, None)
    assert (joined.kind, joined.at_ms) == (FactKind.JOINED, NOW_MS + 1_000)
    assert (joined.participant, joined.device) == ("ann", ann.device)
    # A lost `joined` is in the `left` too.
    assert (rejoined.kind, rejoined.at_ms) == (FactKind.JOINED, joined.at_ms)
    assert rejoined.key != joined.key
    # LiveKit dates events in whole seconds.
    assert (left.kind, left.at_ms) == (FactKind.LEFT, (NOW_MS + 62_500) // 1000 * 1000)
    assert (ended.kind, ended.at_ms) == (FactKind.ENDED, (NOW_MS + 63_000) // 1000 * 1000)


def test_a_short_stay_is_not_negative() -> None:
    fake = FakeLiveKit(NOW_MS)
    run = fake.start("room")
    ann = fake.join(run, "ann")
    fake.now_ms += 300
    fake.leave(run, ann)
    joined, left = facts_of(fake.take()[-1])
    assert (joined.at_ms, left.at_ms) == (NOW_MS, NOW_MS)


def test_an_aborted_connection_has_no_time() -> None:
    fake = FakeLiveKit(NOW_MS)
    run = fake.start("room")
    ann = fake.join(run, "ann")
    fake.now_ms += 30_000
    sent = fake.send("participant_connection_aborted", run, participant=fake.participant(ann))
    (fact,) = facts_of(sent)
    assert (fact.kind, fact.at_ms, fact.device) == (FactKind.LEFT, NOW_MS, ann.device)


MACHINES: dict[str, dict[str, Any]] = {
    "egress": {"kind": ParticipantInfo.EGRESS},
    "ingress": {"kind": ParticipantInfo.INGRESS},
    "agent": {"kind": ParticipantInfo.AGENT},
    "bridge": {"kind": ParticipantInfo.BRIDGE},
    "old recorder": {"permission": ParticipantPermission(recorder=True)},
    "old agent": {"permission": ParticipantPermission(agent=True)},
}


@pytest.mark.parametrize("fields", MACHINES.values(), ids=MACHINES)
def test_machines_are_no_people(fields: dict[str, Any]) -> None:
    fake = FakeLiveKit(NOW_MS)
    run = fake.start("room")
    presence = fake.join(run, "machine")
    participant = fake.participant(presence, **fields)
    for event in ("participant_joined", "participant_left", "participant_connection_aborted"):
        assert facts_of(fake.send(event, run, participant=participant)) == []


@pytest.mark.parametrize("kind", [ParticipantInfo.SIP, ParticipantInfo.CONNECTOR])
def test_people_on_the_phone_are_people(kind: Any) -> None:
    fake = FakeLiveKit(NOW_MS)
    run = fake.start("room")
    participant = fake.participant(fake.join(run, "ann"), kind=kind)
    assert facts_of(fake.send("participant_joined", run, participant=participant))


@pytest.mark.parametrize("event", ["track_published", "egress_started", "ingress_ended", "new"])
def test_other_events_are_no_facts(event: str) -> None:
    fake = FakeLiveKit(NOW_MS)
    run = fake.start("room")
    sent = fake.send(event, run, participant=fake.participant(fake.join(run, "ann")))
    assert facts_of(sent) == []


def test_events_that_livekit_dropped_are_asked_for() -> None:
    fake = FakeLiveKit(NOW_MS)
    run = fake.start("room")
    (fact,) = facts_of(fake.send("room_started", run, num_dropped=3))
    assert fact.wants_sweep


def test_rest_s_names_and_numbers_are_read_as_well() -> None:
    fake = FakeLiveKit(NOW_MS)
    run = fake.start("room")
    fake.join(run, "ann")
    event = WebhookEvent.FromString(
        WebhookEvent(
            event="participant_joined", id="EV_1", created_at=NOW_MS // 1000, room=fake.room(run),
            participant=fake.participant(run.presences[0]),
        ).SerializeToString()
    )  # fmt: skip
    camel = MessageToJson(event, indent=None)
    snake = MessageToJson(
        event, preserving_proto_field_name=True, use_integers_for_enums=True,
        always_print_fields_with_no_presence=True,
    )  # fmt: skip
    numbers = json.loads(camel)
    numbers["createdAt"] = int(numbers["createdAt"])
    found = [facts_of(fake.signed(body.encode())) for body in (camel, snake, json.dumps(numbers))]
    assert found[0] == found[1] == found[2] != []


def by_sdk(sent: SentWebhook) -> bool:
    receiver = WebhookReceiver(TokenVerifier(API_KEY, SECRET))
    try:
        receiver.receive(sent.body.decode(), sent.headers["authorization"])
    except Exception:
        return False
    return True


def test_tokens_are_those_of_livekit_s_sdk() -> None:
    now_ms = time.time_ns() // 1_000_000
    fake = FakeLiveKit(now_ms)
    fake.start("room")
    (sent,) = fake.take()
    body_hash = base64.b64encode(hashlib.sha256(sent.body).digest()).decode()
    good = AccessToken(API_KEY, SECRET).with_sha256(body_hash).to_jwt()
    assert facts_of(with_token(sent, f"Bearer {good}"), now_ms)
    now_s = now_ms // 1000
    claims = {"iss": API_KEY, "exp": now_s + 60, "sha256": body_hash}
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "good": (claims, SECRET),
        "another secret": (claims, "x" * 32),
        "another project": ({**claims, "iss": "APIother"}, SECRET),
        "no issuer": ({"exp": claims["exp"], "sha256": body_hash}, SECRET),
        "no end": ({"iss": API_KEY, "sha256": body_hash}, SECRET),
        "no hash": ({**claims, "sha256": ""}, SECRET),
        "another hash": ({**claims, "sha256": base64.b64encode(b"x" * 32).decode()}, SECRET),
        "over": ({**claims, "exp": now_s - 3_600}, SECRET),
        "just over": ({**claims, "exp": now_s - 30}, SECRET),
        "not begun": ({**claims, "nbf": now_s + 3_600}, SECRET),
        "just not begun": ({**claims, "nbf": now_s + 30}, SECRET),
    }
    for name, (made, secret) in cases.items():
        token = jwt.encode(made, secret, algorithm="HS256")
        given_one = with_token(sent, token)
        try:
            facts_of(given_one, now_ms)
            taken = True
        except RefusedEventError:
            taken = False
        assert taken == by_sdk(given_one), name
    assert by_sdk(sent)
    # `none` and other algorithms are not for us to try.
    for token in (
        jwt.encode(claims, "", algorithm="none"),
        jwt.encode(claims, "s" * 64, algorithm="HS512"),
        "", "Bearer ", "x.y.z", "é", ".".join(["eyJ" * 50_000] * 3),
    ):  # fmt: skip
        assert refusal(with_token(sent, token), now_ms) == "event_forged"
    assert refusal(sent._replace(headers={}), now_ms) == "event_forged"


def test_a_participant_s_own_token_signs_nothing() -> None:
    fake = FakeLiveKit(NOW_MS)
    fake.start("room")
    (sent,) = fake.take()
    grants = VideoGrants(room_join=True, room="room")
    token = AccessToken(API_KEY, SECRET).with_identity("ann").with_grants(grants).to_jwt()
    now_ms = time.time_ns() // 1_000_000
    assert refusal(with_token(sent, token), now_ms) == "event_forged"


def test_altered_and_old_events_are_refused() -> None:
    fake = FakeLiveKit(NOW_MS)
    fake.start("room")
    (sent,) = fake.take()
    assert refusal(sent._replace(body=sent.body + b" ")) == "event_altered"
    assert refusal(sent._replace(body=sent.body.replace(b"room", b"rook"))) == "event_altered"
    end_ms = (NOW_MS // 1000 + TOKEN_S) * 1000
    assert facts_of(sent, end_ms + LEEWAY_MS)
    assert refusal(sent, end_ms + LEEWAY_MS + 1) == "event_ancient"
    assert refusal(sent, NOW_MS // 1000 * 1000 - LEEWAY_MS - 1) == "event_ahead"
    # An old body under a new token: only LiveKit could make it, and the inbox may have forgotten.
    old_ms = NOW_MS + call_limits.CALL_EVENT_AGE_MS_MAX + 1_000
    again = fake.signed(sent.body, exp=old_ms // 1000 + TOKEN_S)
    assert refusal(again, old_ms) == "event_ancient"
    wrong: list[dict[str, Any]] = [
        {"exp": "soon"}, {"nbf": []}, {"sha256": 5}, {"sha256": "ä" * 44},
    ]  # fmt: skip
    for claims in wrong:
        assert refusal(fake.signed(sent.body, **claims)) in ("event_forged", "event_altered")


def test_the_key_is_the_event_s_id_in_the_signed_body() -> None:
    fake = FakeLiveKit(NOW_MS)
    run = fake.start("room")
    fake.leave(run, fake.join(run, "ann"))
    fake.end(run)
    sent = fake.take()
    keys = [adapter().event_key(each.body) for each in sent]
    assert len(set(keys)) == len(keys)
    again = fake.signed(sent[1].body, jti="fresh")
    assert facts_of(again) == facts_of(sent[1])
    all_keys = [fact.key for each in sent for fact in adapter().facts(each.body)]
    assert len(set(all_keys)) == len(all_keys)
    nameless = json.loads(sent[0].body)
    del nameless["id"]
    first, second = (
        adapter().event_key(json.dumps({**nameless, "createdAt": str(at)}).encode())
        for at in (1, 2)
    )
    assert first != second


WRONG: dict[str, dict[str, Any]] = {
    "no instant": {"createdAt": None},
    "a negative instant": {"createdAt": -5},
    "an instant of text": {"createdAt": "soon"},
    "a huge instant": {"createdAt": "9" * 20},
    "no room": {"room": None},
    "a room without a sid": {"room": {"name": "room"}},
    "a room without a name": {"room": {"sid": "RM_1"}},
    "a room of text": {"room": "room"},
    "no participant": {"participant": None},
    "a participant without a name": {"participant": {"sid": "PA_1"}},
    "a participant without a sid": {"participant": {"identity": "ann"}},
    "an identity that cannot be kept": {"participant": {"identity": "a\0", "sid": "PA_1"}},
    "an identity of numbers": {"participant": {"identity": 5, "sid": "PA_1"}},
    "a join of text": {"participant": {"identity": "a", "sid": "P", "joinedAt": "soon"}},
}


@pytest.mark.parametrize("changes", WRONG.values(), ids=WRONG)
def test_signed_nonsense_is_refused(changes: dict[str, Any]) -> None:
    fake = FakeLiveKit(NOW_MS)
    run = fake.start("room")
    fake.leave(run, fake.join(run, "ann"))
    event = json.loads(fake.take()[-1].body)
    body = json.dumps({**event, **changes}).encode()
    assert refusal(fake.signed(body)) == "event_malformed"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@given(
    st.sampled_from(["room_started", "participant_joined", "participant_left", "room_finished"]),
    st.dictionaries(
        st.sampled_from(["sid", "name", "creationTime", "creation_time_ms", "metadata"]),
        json_values,
    ),
    st.dictionaries(
        st.sampled_from(["identity", "kind", "state", "joinedAt", "permission"]), json_values
    ),
    st.dictionaries(st.sampled_from(["id", "createdAt", "numDropped", "room"]), json_values),
)
def test_no_signed_body_breaks_the_adapter(
    event: str, room: dict[str, Any], participant: dict[str, Any], fields: dict[str, Any]
) -> None:
    body = {
        "event": event, "createdAt": NOW_MS // 1000, "room": {"sid": "RM_1", "name": "r", **room},
        "participant": {"sid": "PA_1", "identity": "ann", **participant}, **fields,
    }  # fmt: skip
    sent = FakeLiveKit(NOW_MS).signed(json.dumps(body).encode())
    try:
        facts = facts_of(sent)
    except RefusedEventError:
        return
    assert facts == facts_of(sent)
    for fact in facts:
        assert fact.at_ms > 0
        assert (fact.participant is None) == (fact.kind in (FactKind.STARTED, FactKind.ENDED))
