"""Sessions in Redis: steps, reads, and the outbox that steps fill."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from protocol.metering.session import SessionState
from protocol.metering.states import Phase
from protocol.metering.steps import Step
from storage.redis.live import Live, LiveError
from storage.redis.scripts import Call
from storage.rows.accounts import AccountRecord
from tests.protocol.bench import starting
from tests.protocol.examples import CREDIT, NOW

TENANT, ANN = "user:ann", "ann"


async def began(live: Live) -> SessionState:
    """A session that has started, with its beginning in the outbox."""
    await live.load_account(TENANT, ANN, AccountRecord(100 * CREDIT, False, ()))
    (outcome,) = await live.commit([starting().step])
    assert outcome.reply is not None
    assert outcome.reply.accepted
    assert outcome.reply.session is not None
    return outcome.reply.session


async def test_a_start_on_a_cold_account_is_not_made(live: Live) -> None:
    (outcome,) = await live.commit([starting().step])
    assert outcome.reply is None
    assert "account" in outcome.cold
    assert await live.outbox() == (0, None)


async def test_a_session_that_started_is_found_as_it_stands(live: Live) -> None:
    session = await began(live)
    found = await live.attach(TENANT, "chat-1", read_only=True)
    assert found is not None
    assert found.session == session
    # The mark of its last step is for those who make steps.
    unmarked = msgspec.structs.replace(session, mark="")
    assert await live.sessions(TENANT, ["chat-1", "none"]) == [unmarked]
    assert [one async for one in live.sessions_of_tenant(TENANT)] == [[unmarked]]
    assert await live.attach(TENANT, "none") is None


async def test_only_a_join_that_is_no_look_notes_the_process(live: Live) -> None:
    await began(live)
    node = live.keys.node(live.keys.partition(TENANT), "node")
    await live.redis.delete(node, live.keys.sockets(TENANT, "chat-1"))
    for read_only, user_id in ((True, ""), (False, "bob")):
        found = await live.attach(TENANT, "chat-1", read_only=read_only, user_id=user_id)
        assert found is not None
        assert found.nodes == frozenset()
    found = await live.attach(TENANT, "chat-1", user_id=ANN)
    assert found is not None
    assert found.nodes == {"node"}
    assert [one async for one in live.sessions_of_node("node")] == [(TENANT, "chat-1")]


async def test_newest_farewell_is_kept_with_session(live: Live) -> None:
    session = await began(live)
    for at, newest in ((NOW + 5, NOW + 5), (NOW + 3, NOW + 5), (NOW + 9, NOW + 9)):
        await live.farewell(session.identity, at)
        found = await live.attach(TENANT, "chat-1", read_only=True)
        assert found is not None
        assert found.farewell_at == newest


async def test_farewell_makes_no_session(live: Live) -> None:
    await live.farewell(starting().meter.session.identity, NOW)
    assert await live.attach(TENANT, "chat-1", read_only=True) is None


async def test_the_outbox_tells_its_oldest_record(live: Live) -> None:
    before = await live.waiting(TENANT)
    assert before.epoch
    assert (before.oldest, before.replayed, before.is_replaying) == (None, "", False)
    assert await live.written_until() == [None, None]
    await began(live)
    after = await live.waiting(TENANT)
    assert after.epoch == before.epoch
    assert after.oldest is not None
    assert after.oldest.made_at == NOW
    entries, appended_at = await live.outbox()
    assert entries == 1
    assert appended_at is not None
    partition = live.keys.partition(TENANT)
    assert (await live.written_until())[partition] == NOW


async def test_a_step_of_a_session_that_redis_lost_says_so(live: Live) -> None:
    session = await began(live)
    await live.redis.delete(live.keys.session(TENANT, "chat-1"))
    step = msgspec.structs.replace(starting().step, before=session)
    (outcome,) = await live.commit([step])
    assert outcome.gone


async def test_a_step_that_cannot_be_encoded_fails_alone(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    await live.load_account(TENANT, ANN, AccountRecord(100 * CREDIT, False, ()))
    right, wrong = starting().step, starting(session_id="chat-2").step
    call = live._commit_call

    def encode(step: Step, node: str) -> object:
        if step is wrong:
            raise ValueError("no such field")
        return call(step, node)

    monkeypatch.setattr(live, "_commit_call", encode)
    failed, made = await live.commit([wrong, right])
    assert "no such field" in failed.failed
    assert made.reply is not None
    assert made.reply.accepted
    assert (await live.sessions(TENANT, ["chat-1"]))[0].standing.phase is Phase.ACTIVE


async def test_scripts_that_redis_forgot_are_sent_again(live: Live) -> None:
    await began(live)
    await live.redis.script_flush()
    outcomes = await live.commit([starting(session_id=name).step for name in ("chat-2", "chat-3")])
    assert [outcome.reply is not None for outcome in outcomes] == [True, True]
    assert await live.outbox() != (0, None)


async def test_steps_reach_slow_redis_that_lost_its_scripts(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis answers once before the deadline, and not twice."""
    await began(live)
    send, sent = live._pipeline, list[int]()

    async def send_once(calls: Sequence[Call]) -> list[Any]:
        sent.append(len(calls))
        if len(sent) == 2:
            raise TimeoutError
        return await send(calls)

    monkeypatch.setattr(live, "_pipeline", send_once)
    await live.redis.script_flush()
    steps = [starting(session_id=name).step for name in ("chat-2", "chat-3")]
    with pytest.raises(LiveError):
        await live.commit(steps)
    outcomes = await live.commit(steps)
    assert [outcome.reply is not None for outcome in outcomes] == [True, True]
    assert sent == [2, 2, 2]


async def test_text_of_steps_is_sent_once_in_one_pipeline(live: Live) -> None:
    """After a restart of Redis many sessions cost one text."""
    await began(live)
    await live.redis.script_flush()
    await live.redis.config_resetstat()
    await live.commit([starting(session_id=f"chat-{number}").step for number in range(2, 12)])
    stats: Any = await live.redis.info("commandstats")
    calls = {name: stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha")}
    assert calls == {"eval": 1, "evalsha": 19}
    assert "cmdstat_script|load" not in stats


async def test_a_preparation_is_confirmed_until_its_session_started(live: Live) -> None:
    expires_at = NOW + 60_000
    confirm = live.confirm_preparation
    assert await confirm(TENANT, "chat-1", "{}", expires_at) == "ok"
    await began(live)
    assert await confirm(TENANT, "chat-1", "{}", expires_at) == "exists"


async def test_steps_fail_together_where_redis_is_gone(live: Live) -> None:
    step = starting().step
    with pytest.MonkeyPatch.context() as patch:

        async def refuse(*_: object) -> None:
            raise ConnectionError("refused")

        patch.setattr(live.redis, "execute_command", refuse)
        with pytest.raises(LiveError, match="refused"):
            await live.commit([step])
