"""What LiveKit's REST says about a room, and how rooms end there."""

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from livekit.protocol.models import ParticipantInfo

from server.calls.facts import CallRun, ProviderError
from server.calls.livekit import LiveKitAdapter
from server.calls.livekit_rest import LiveKitRest
from server.calls.rest import RestClient
from tests.calls.fake_calls import FakePresence, FakeRun
from tests.calls.fake_livekit import API_KEY, SECRET, FakeLiveKit
from tests.calls.site import ProviderSite, served

NOW_MS = 1_790_000_000_123


class MixedLiveKit(FakeLiveKit):
    """A server with machines in its rooms, and people underway."""

    fields: dict[str, dict[str, Any]] = {  # noqa: RUF012
        "EG_recorder": {"kind": ParticipantInfo.EGRESS},
        "agent": {"kind": ParticipantInfo.AGENT},
        "phone": {"kind": ParticipantInfo.SIP},
        "coming": {"state": ParticipantInfo.JOINING},
        "gone": {"state": ParticipantInfo.DISCONNECTED},
        "old": {"joined_at_ms": 0},
    }

    def participant(self, presence: FakePresence, **fields: Any) -> ParticipantInfo:
        return super().participant(presence, **{**self.fields.get(presence.user, {}), **fields})


@pytest.fixture
def fake() -> FakeLiveKit:
    return MixedLiveKit(NOW_MS)


@pytest.fixture
def site(fake: FakeLiveKit) -> Iterator[ProviderSite]:
    with served(fake) as made:
        yield made


@pytest.fixture
async def adapter(fake: FakeLiveKit, site: ProviderSite) -> AsyncIterator[LiveKitAdapter]:
    client = RestClient("livekit", site.url)
    rest = LiveKitRest(client, API_KEY, SECRET, lambda: fake.now_ms)
    yield LiveKitAdapter(API_KEY, SECRET, rest)
    client.close()


def run_of(run: FakeRun, name: str | None = None) -> CallRun:
    return CallRun(
        call=run.call, call_session=run.session, rest_name=run.name if name is None else name
    )


@pytest.mark.parametrize("is_named", [True, False])
async def test_a_sweep_finds_the_people_who_are_there(
    is_named: bool, fake: FakeLiveKit, adapter: LiveKitAdapter
) -> None:
    fake.start("another room")
    run = fake.start("maths room", payer="host-1")
    for user in ("ann", "phone", "old", *MixedLiveKit.fields):
        fake.now_ms += 1_000
        if user not in [each.user for each in run.presences]:
            fake.join(run, user)
    truth = await adapter.sweep(run_of(run, None if is_named else ""))
    assert [one.participant for one in truth.presences] == ["ann", "phone", "old"]
    by_user = {each.user: each for each in run.presences}
    assert [one.device for one in truth.presences] == [
        by_user[one.participant].device for one in truth.presences
    ]
    assert [one.from_at_ms for one in truth.presences] == [
        NOW_MS + 1_000, NOW_MS + 2_000, (NOW_MS + 3_000) // 1000 * 1000,
    ]  # fmt: skip
    assert all(one.to_at_ms is None for one in truth.presences)
    assert (truth.started_at_ms, truth.ended, truth.ended_at_ms) == (NOW_MS, False, None)
    assert (truth.has_history, truth.complete, truth.durations_ms) == (False, True, {})
    assert truth.custom == {"payer": "host-1"}


async def test_a_room_that_is_over_and_one_of_the_same_name(
    fake: FakeLiveKit, adapter: LiveKitAdapter
) -> None:
    run = fake.start("room")
    fake.end(run)
    for _ in range(2):
        truth = await adapter.sweep(run_of(run))
        assert (truth.ended, truth.ended_at_ms, truth.presences) == (True, None, ())
        newer = fake.start("room")
        fake.join(newer, "ann")
    assert (await adapter.sweep(run_of(fake.runs[1]))).presences


async def test_a_participant_is_removed_and_a_room_deleted(
    fake: FakeLiveKit, adapter: LiveKitAdapter
) -> None:
    run = fake.start("room")
    fake.join(run, "ann")
    fake.join(run, "bob")
    fake.ends_refused = 1
    with pytest.raises(ProviderError) as failed:
        await adapter.end(run_of(run), "ann")
    assert failed.value.retryable
    await adapter.end(run_of(run), "ann")
    await adapter.end(run_of(run, ""), "ann")  # nothing is left to end
    assert [each.user for each in run.present()] == ["bob"]
    await adapter.end(run_of(run), None)
    assert run.ended_ms is not None
    newer = fake.start("room")
    fake.join(newer, "bob")
    asked = len(fake.ends)
    await adapter.end(run_of(run), "bob")
    await adapter.end(run_of(run), None)
    assert len(fake.ends) == asked
    assert newer.present()


NONSENSE: list[Any] = [
    b"", b"<html>", [], {"rooms": 5}, {"participants": ["ann"]}, {"rooms": [{"sid": 5}]},
    {"rooms": [{"sid": "RM_1", "name": "room", "creation_time": "soon"}]},
    {"rooms": [{"sid": "RM_1"}], "participants": [{"identity": "", "state": "ACTIVE"}]},
]  # fmt: skip


@pytest.mark.parametrize("answer", NONSENSE)
async def test_undocumented_answers_are_errors(
    answer: Any, site: ProviderSite, adapter: LiveKitAdapter
) -> None:
    site.fixed = (200, {}, answer if isinstance(answer, bytes) else json.dumps(answer).encode())
    run = CallRun(call="RM_1", call_session="RM_1", rest_name="room")
    with pytest.raises(ProviderError):
        await adapter.sweep(run)
    with contextlib.suppress(ProviderError):
        await adapter.end(run, "ann")


@pytest.mark.parametrize("answer", [b"", b"<html>", b'{"code":"bad_route"}'])
async def test_a_site_that_has_no_rooms_ends_none(
    answer: bytes, site: ProviderSite, adapter: LiveKitAdapter
) -> None:
    site.fixed = (404, {}, answer)
    with pytest.raises(ProviderError):
        await adapter.sweep(CallRun(call="RM_1", call_session="RM_1", rest_name="room"))
