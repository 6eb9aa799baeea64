"""Joins in Redis that their process has not confirmed."""

import msgspec

from protocol.metering.assertion import Assertion
from protocol.metering.session import SessionState
from storage.redis.live import Live
from storage.redis.recovery import Restoring
from tests.protocol.bench import Bench
from tests.protocol.examples import NOW
from tests.storage.test_live import ANN, TENANT, began


async def joined(live: Live) -> tuple[SessionState, Live]:
    """A session of ``node``, and ``other``, which has asked to join it."""
    session = await began(live)
    other = Live(live.redis, live.keys, "other")
    found = await other.attach(TENANT, "chat-1", user_id=ANN, asked_at=NOW + 1_000)
    assert found is not None
    assert found.joining == {"other": NOW + 1_000}
    assert found.proven_at("other", NOW + 9_000) == NOW + 1_000
    assert found.proven_at("node", NOW + 9_000) == NOW + 9_000
    return session, other


async def joining(live: Live) -> dict[str, int]:
    found = await live.attach(TENANT, "chat-1", read_only=True)
    assert found is not None
    return found.joining


async def test_first_join_of_a_process_counts_until_confirmed(live: Live) -> None:
    _, other = await joined(live)
    await other.attach(TENANT, "chat-1", user_id=ANN, asked_at=NOW + 2_000)
    await live.attach(TENANT, "chat-1", user_id=ANN, asked_at=NOW + 2_000)
    await live.confirm_join(TENANT, "chat-1")
    assert await joining(live) == {"other": NOW + 1_000}
    await other.confirm_join(TENANT, "chat-1")
    assert await joining(live) == {}


async def test_join_without_instant_awaits_no_confirmation(live: Live) -> None:
    await began(live)
    other = Live(live.redis, live.keys, "other")
    found = await other.attach(TENANT, "chat-1", user_id=ANN)
    assert found is not None
    assert found.nodes == {"node", "other"}
    assert not found.joining


async def test_step_of_a_present_process_confirms_its_join(live: Live) -> None:
    session, other = await joined(live)
    bench = Bench(session)
    bench.meter.note_again(bench.now)
    step = bench.step
    (outcome,) = await other.commit([msgspec.structs.replace(step, present=False)])
    assert outcome.reply is not None
    assert outcome.reply.accepted
    assert outcome.reply.session is not None
    assert await joining(live) == {"other": NOW + 1_000}
    bench = Bench(outcome.reply.session)
    bench.meter.note_again(bench.now)
    assert bench.step.present
    (outcome,) = await other.commit([bench.step])
    assert outcome.reply is not None
    assert outcome.reply.accepted
    assert await joining(live) == {}


async def test_assertion_of_a_present_process_confirms_its_join(live: Live) -> None:
    session, other = await joined(live)
    recovery = Restoring(other)
    for present in (False, True):
        said = Assertion(session, (), (), present=present)
        await recovery.put_back(said)
        assert await joining(live) == ({} if present else {"other": NOW + 1_000})
