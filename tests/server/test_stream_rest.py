"""What Stream's REST says about a call, and how calls end there."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from server.calls import limits as call_limits
from server.calls.facts import CallRun, ProviderError
from server.calls.rest import RestClient
from server.calls.stream import StreamAdapter
from server.calls.stream_rest import StreamRest
from tests.calls.fake_calls import FakeRun
from tests.calls.fake_stream import API_KEY, SECRET, FakeStream
from tests.calls.site import ProviderSite, served

NOW_MS = 1_790_000_000_000


@pytest.fixture
def fake() -> FakeStream:
    return FakeStream(NOW_MS, page_rows=2)


@pytest.fixture
def site(fake: FakeStream) -> Iterator[ProviderSite]:
    with served(fake) as made:
        yield made


@pytest.fixture
async def adapter(fake: FakeStream, site: ProviderSite) -> AsyncIterator[StreamAdapter]:
    client = RestClient("stream", site.url)
    yield StreamAdapter(SECRET, StreamRest(client, API_KEY, SECRET, lambda: fake.now_ms))
    client.close()


def run_of(run: FakeRun) -> CallRun:
    return CallRun(call=run.call, call_session=run.session, rest_name=run.name)


async def test_a_sweep_reads_every_page_and_no_answer_s_own_time(
    fake: FakeStream, site: ProviderSite, adapter: StreamAdapter
) -> None:
    run = fake.start("default:maths", payer="host-1")
    presences = []
    for at in range(5):
        fake.now_ms += 1_000
        presences.append(fake.join(run, f"user-{at % 2}"))
    fake.now_ms += 61_500
    fake.leave(run, presences[0])
    truth = await adapter.sweep(run_of(run))
    assert (truth.provider, truth.call, truth.call_session) == ("stream", run.call, run.session)
    assert (truth.started_at_ms, truth.ended, truth.ended_at_ms) == (NOW_MS, False, None)
    assert truth.asked_at_ms == fake.now_ms
    assert truth.complete
    assert truth.has_history
    assert truth.custom == {"payer": "host-1"}
    assert [
        (one.participant, one.device, one.from_at_ms, one.to_at_ms) for one in truth.presences
    ] == [(one.user, one.device, one.from_ms, one.to_ms) for one in presences]
    # 65, 63 and 61 s; 64 and 62 s: each stretch in whole seconds, as Stream has it.
    assert [one.duration_ms for one in truth.presences] == [
        65_000 + 500 - 500,
        64_000,
        63_000,
        62_000,
        61_000,
    ]
    assert truth.durations_ms == {"user-0": 189_000, "user-1": 126_000}
    assert len([path for path in site.asked if path.endswith("participant_sessions")]) == 3


async def test_a_session_that_is_over(fake: FakeStream, adapter: StreamAdapter) -> None:
    run = fake.start("default:maths")
    fake.join(run, "ann")
    fake.now_ms += 10_000
    fake.end(run)
    newer = fake.start("default:maths")
    truth = await adapter.sweep(run_of(run))
    assert (truth.ended, truth.ended_at_ms) == (True, NOW_MS + 10_000)
    assert truth.durations_ms == {"ann": 10_000}
    assert not (await adapter.sweep(run_of(newer))).ended


async def test_a_session_that_stream_does_not_know_has_no_history_and_is_not_over(
    fake: FakeStream, adapter: StreamAdapter
) -> None:
    fake.start("default:maths")
    for call in ("default:maths", "default:deleted"):
        truth = await adapter.sweep(CallRun(call=call, call_session="unknown"))
        assert (truth.ended, truth.ended_at_ms, truth.has_history) == (False, None, False)
        assert truth.presences == ()


async def test_a_session_that_is_not_shown_as_the_current_one_is_not_over(
    fake: FakeStream, adapter: StreamAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = fake.start("default:maths")
    fake.now_ms += 5_000
    run = fake.start("default:maths")
    fake.join(run, "ann")
    call = fake.call
    for shown in (None, older):  # none yet, and the one before

        def behind(_: FakeRun, shown: FakeRun | None = shown) -> dict[str, Any]:
            session = fake.session(shown) if shown is not None else None
            current = shown.session if shown is not None else ""
            return {**call(run), "current_session_id": current, "session": session}

        monkeypatch.setattr(fake, "call", behind)
        truth = await adapter.sweep(run_of(run))
        assert (truth.ended, truth.complete, len(truth.presences)) == (False, True, 1)
        assert truth.presences[0].to_at_ms is None
    # A later one follows it, whether or not Stream says when it ended.
    monkeypatch.setattr(fake, "call", call)
    truth = await adapter.sweep(run_of(older))
    assert (truth.ended, truth.ended_at_ms) == (True, None)


async def test_the_creator_is_the_host_also_where_custom_data_are_ignored(
    fake: FakeStream, site: ProviderSite, adapter: StreamAdapter
) -> None:
    run = fake.start("default:maths", payer="host-1")
    run.creator = "teacher-1"
    assert (await adapter.sweep(run_of(run))).custom == {"payer": "host-1", "host": "teacher-1"}
    rest = StreamRest(RestClient("stream", site.url), API_KEY, SECRET, lambda: fake.now_ms)
    wary = StreamAdapter(SECRET, rest, trusts_custom=False)
    assert (await wary.sweep(run_of(run))).custom == {"host": "teacher-1"}
    # Data that count may name another one.
    run.custom["host"] = "teacher-2"
    assert (await adapter.sweep(run_of(run))).custom["host"] == "teacher-2"
    assert (await wary.sweep(run_of(run))).custom == {"host": "teacher-1"}
    assert (adapter.maps_calls, wary.maps_calls) == (True, False)


async def test_a_sweep_has_a_bound(
    fake: FakeStream, adapter: StreamAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_limits, "CALL_SWEEP_PAGES_MAX", 2)
    run = fake.start("default:maths")
    for at in range(5):
        fake.join(run, f"user-{at}")
    truth = await adapter.sweep(run_of(run))
    assert not truth.complete
    assert len(truth.presences) == 4


async def test_a_participant_is_kicked_and_a_call_ended(
    fake: FakeStream, adapter: StreamAdapter
) -> None:
    run = fake.start("default:maths")
    fake.join(run, "ann")
    fake.join(run, "bob")
    fake.ends_refused = 1
    with pytest.raises(ProviderError) as failed:
        await adapter.end(run_of(run), "ann")
    assert failed.value.retryable
    await adapter.end(run_of(run), "ann")
    assert [each.user for each in run.present()] == ["bob"]
    await adapter.end(run_of(run), "ann")  # nothing is left to end
    await adapter.end(run_of(run), None)
    assert run.ended_ms is not None
    asked = len(fake.ends)
    await adapter.end(run_of(run), None)
    newer = fake.start("default:maths")
    fake.join(newer, "bob")
    # The call has another session by now, which has its own limits.
    await adapter.end(run_of(run), "bob")
    await adapter.end(run_of(run), None)
    assert len(fake.ends) == asked
    assert newer.present()


@pytest.mark.parametrize("call", ["maths", ":maths", "default:", ""])
async def test_what_is_no_cid_is_not_asked_for(
    call: str, site: ProviderSite, adapter: StreamAdapter
) -> None:
    with pytest.raises(ProviderError) as failed:
        await adapter.sweep(CallRun(call=call, call_session="s"))
    assert not failed.value.retryable
    assert site.asked == []


async def test_ids_stay_in_their_place_in_the_path(
    site: ProviderSite, adapter: StreamAdapter
) -> None:
    await adapter.sweep(CallRun(call="default:../../users?x=#", call_session="a/b"))
    assert site.asked[0] == "GET /api/v2/video/call/default/..%2F..%2Fusers%3Fx%3D%23"
    assert site.asked[1].endswith("/session/a%2Fb/participant_sessions")


NONSENSE: list[Any] = [
    b"", b"<html>", [], {"call": None}, {"call": {"custom": 5}}, {"call": {"session": []}},
    {"call": {"session": {"id": "s", "ended_at": "soon"}}, "participants_sessions": []},
    {"call": {}, "participants_sessions": None},
    {"call": {}, "participants_sessions": [{"user_id": "", "joined_at": 5}]},
    {"call": {}, "participants_sessions": [{"user_id": "ann", "joined_at": "soon"}]},
]  # fmt: skip


@pytest.mark.parametrize("answer", NONSENSE)
async def test_undocumented_answers_are_errors(
    answer: Any, site: ProviderSite, adapter: StreamAdapter
) -> None:
    site.fixed = (200, {}, answer if isinstance(answer, bytes) else json.dumps(answer).encode())
    with pytest.raises(ProviderError):
        await adapter.sweep(CallRun(call="default:maths", call_session="s"))


OTHERS: list[tuple[int, bytes]] = [
    (200, b'{"call":{}}'),
    (200, b'{"call":{"cid":"default:other","current_session_id":""}}'),
    (404, b""),
    (404, b"<html>no such site</html>"),
]


@pytest.mark.parametrize(("status", "answer"), OTHERS)
async def test_an_answer_that_is_not_about_the_call_ends_it_not(
    status: int, answer: bytes, site: ProviderSite, adapter: StreamAdapter
) -> None:
    site.fixed = (status, {}, answer)
    with pytest.raises(ProviderError):
        await adapter.sweep(CallRun(call="default:maths", call_session="s-1"))
