"""The fake providers are as the providers' SDKs say: fields, signatures, REST."""

import json
import random
from collections import Counter

import pytest
from getstream import Stream, models
from getstream.exceptions import StreamApiException
from google.protobuf.message import Message
from livekit import api
from livekit.protocol import room as rooms
from livekit.protocol.webhook import WebhookEvent

from tests.calls.examples import missing_fields
from tests.calls.fake_calls import FakeCalls, FakeRun
from tests.calls.fake_livekit import ABSENT, API_KEY, SECRET, FakeLiveKit
from tests.calls.fake_stream import API_KEY as STREAM_KEY
from tests.calls.fake_stream import EVENT_MODELS, OWN_TIME, FakeStream
from tests.calls.fake_stream import SECRET as STREAM_SECRET
from tests.calls.mischief import Mischief
from tests.calls.site import served

NOW_MS = 1_790_000_000_000


def history(fake: FakeCalls) -> FakeRun:
    """A call of ann, twice, and bob."""
    run = fake.start("default:maths", payer="host-1")
    fake.now_ms += 1_000
    ann = fake.join(run, "ann")
    fake.join(run, "bob")
    fake.now_ms += 60_000
    fake.leave(run, ann)
    fake.now_ms += 5_000
    fake.join(run, "ann")
    fake.now_ms += 10_500
    return run


def test_stream_s_events_have_every_field_of_their_models() -> None:
    fake = FakeStream(NOW_MS)
    run = history(fake)
    fake.end(run)
    fake.send_marked(run)
    fake.send("call.member_added", call_cid=run.call, call=fake.call(run), members=[])
    fake.send("call.updated", call_cid=run.call, call=fake.call(run))
    fake.send("call.deleted", call_cid=run.call, call=fake.call(run))
    seen = set()
    for sent in fake.take():
        event = json.loads(sent.body)
        seen.add(event["type"])
        assert missing_fields(event, EVENT_MODELS[event["type"]]) == []
    assert seen == EVENT_MODELS.keys()


def test_a_field_that_the_fake_lacks_is_found() -> None:
    fake = FakeStream(NOW_MS)
    history(fake)
    event = json.loads(fake.take()[1].body)
    del event["session_id"], event["participant"]["user"]["online"]
    missing = missing_fields(event, models.CallSessionParticipantJoinedEvent)
    assert sorted(missing) == [".participant.user.online", ".session_id"]


def test_livekit_s_events_have_every_field_of_their_messages_or_say_which_not() -> None:
    fake = FakeLiveKit(NOW_MS)
    run = history(fake)
    run.custom["payer"] = "host-1"
    present = run.present()[0]
    found: dict[str, Message] = {
        "livekit.Room": fake.room(run),
        "livekit.ParticipantInfo": fake.participant(
            present, attributes={"a": "b"}, metadata="some"
        ),
    }
    event = WebhookEvent(
        event="participant_joined", id="EV_1", created_at=5, room=fake.room(run),
        participant=fake.participant(present),
    )  # fmt: skip
    found["livekit.WebhookEvent"] = event
    for name, message in found.items():
        set_fields = {field.name for field, _ in message.ListFields()}
        # A field with its default is not listed: a person's kind is 0.
        defaults = {"kind"} if name == "livekit.ParticipantInfo" else set()
        all_fields = {field.name for field in message.DESCRIPTOR.fields}
        assert all_fields - set_fields - defaults == ABSENT[name], name


def test_stream_s_sdk_understands_the_fake_s_rest() -> None:
    fake = FakeStream(NOW_MS, page_rows=2)
    run = history(fake)
    with served(fake) as site:
        client = Stream(api_key=STREAM_KEY, api_secret=STREAM_SECRET, base_url=site.url)
        call = client.video.get_call("default", "maths").data.call
        assert call.current_session_id == run.session
        assert call.custom == {"payer": "host-1"}
        asked = ("default", "maths", run.session)
        first = client.video.query_call_participant_sessions(*asked).data
        rest = client.video.query_call_participant_sessions(*asked, next=first.next).data
        assert first.duration == rest.duration == OWN_TIME
        assert rest.next is None
        found = [*first.participants_sessions, *rest.participants_sessions]
        assert [(one.user_id, one.duration_in_seconds) for one in found] == [
            ("ann", 60), ("bob", 75), ("ann", 10),
        ]  # fmt: skip
        assert [one.left_at is None for one in found] == [False, True, True]
        fake.ends_refused = 1
        with pytest.raises(StreamApiException):
            client.video.kick_user("default", "maths", "ann")
        client.video.kick_user("default", "maths", "ann")
        client.video.end_call("default", "maths")
        assert fake.ends == [(run.session, "ann")] * 2 + [(run.session, None)]
        assert run.ended_ms is not None
        with pytest.raises(StreamApiException):
            client.video.get_call("default", "other")
        client.close()


async def test_livekit_s_sdk_understands_the_fake_s_rest() -> None:
    fake = FakeLiveKit(NOW_MS)
    run = history(fake)
    with served(fake) as site:
        async with api.LiveKitAPI(site.url, API_KEY, SECRET) as client:
            found = await client.room.list_rooms(rooms.ListRoomsRequest(names=[run.name]))
            assert [room.sid for room in found.rooms] == [run.session]
            asked = rooms.ListParticipantsRequest(room=run.name)
            present = await client.room.list_participants(asked)
            assert [one.identity for one in present.participants] == ["bob", "ann"]
            ann = rooms.RoomParticipantIdentity(room=run.name, identity="ann")
            await client.room.remove_participant(ann)
            with pytest.raises(api.TwirpError):
                await client.room.remove_participant(ann)
            await client.room.delete_room(rooms.DeleteRoomRequest(room=run.name))
            assert fake.ends == [(run.session, "ann"), (run.session, None)]
            found = await client.room.list_rooms(rooms.ListRoomsRequest(names=[run.name]))
            assert list(found.rooms) == []


def test_the_truth_is_the_union_of_a_user_s_devices() -> None:
    fake = FakeStream(NOW_MS)
    run = fake.start("default:maths")
    phone = fake.join(run, "ann")
    fake.now_ms += 1_000
    laptop = fake.join(run, "ann")
    fake.now_ms += 1_000
    fake.leave(run, phone)
    fake.now_ms += 1_000
    fake.leave(run, laptop)
    fake.now_ms += 1_000
    fake.join(run, "ann")
    fake.now_ms += 1_000
    fake.end(run)
    assert run.true_ms("ann") == 4_000
    assert run.true_ms("bob") == 0


def test_mischief_loses_repeats_reorders_and_delays() -> None:
    fake = FakeStream(NOW_MS)
    for _ in range(100):
        fake.end(history(fake))
    sent = fake.take()
    calm = Mischief().deliveries(sent, random.Random(1))
    assert sorted(calm, key=repr) == sorted(sent, key=repr)
    assert [event.at_ms for event in calm] == sorted(event.at_ms for event in sent)
    wild = Mischief(lost=0.1, repeated=0.2, delayed=0.5)
    arrived = wild.deliveries(sent, random.Random(2))
    assert arrived == wild.deliveries(sent, random.Random(2))
    copies = Counter(event.body for event in arrived)
    assert 0 < len(sent) - len(copies) < len(sent) // 5
    assert max(copies.values()) == 3
    assert {event.headers["x-webhook-attempt"] for event in arrived} == {"1", "2", "3"}
    order = {event.body: at for at, event in enumerate(sent)}
    places = [order[event.body] for event in arrived]
    assert places != sorted(places)
