"""Calls while an engine or the provider fails, as promised for sockets."""

import random
from collections.abc import Awaitable, Callable

import pytest

from protocol.metering.records import EntryPosted
from server.calls.billing import session_id_of
from tests.calls.call_histories import CREDIT
from tests.calls.fake_calls import FakeCalls
from tests.calls.fake_livekit import FakeLiveKit
from tests.calls.fake_stream import FakeStream
from tests.calls.virtual_calls import VirtualCalls
from tests.simulation.driver import Laboratory
from tests.simulation.virtual import START_AT, VirtualLoop, run
from tests.simulation.virtual_cluster import VirtualCluster

pytestmark = pytest.mark.usefixtures("quiet_logs")
MINUTE_MS = 60_000
PROVIDERS = {"stream": FakeStream, "livekit": FakeLiveKit}
LIVEKIT_MS = 1_000
"""LiveKit dates leavings in whole seconds."""


def directed(
    lab: Laboratory,
    provider: str,
    work: Callable[[VirtualCalls], Awaitable[None]],
    credits_: int = 1_000,
) -> None:
    """Runs a course of events with two processes, and settles it."""

    async def main(loop: VirtualLoop) -> None:
        loop.clock.now_ms = START_AT
        fake: FakeCalls = PROVIDERS[provider](START_AT)
        cluster = VirtualCluster(loop, lab.wire, lab.postgres)
        calls = VirtualCalls(cluster, fake, random.Random(0))
        try:
            await calls.serve()
            await calls.serve()
            calls.flusher()
            host = cluster.nodes[0]
            for user in ("ann", "bob"):
                entry = EntryPosted(
                    tenant=f"user:{user}", account_id=user, entry_id=f"grant-{user}",
                    entry_kind="grant", amount_micros=credits_ * CREDIT, at=calls.now,
                )  # fmt: skip
                await cluster.finished(host.act(host.ledger.enter(entry)))
            await calls.advance(0)
            await work(calls)
            assert not calls.given_up or provider == "livekit"
        finally:
            cluster.stop()
            await cluster.settle()

    with lab.emptied():
        run(main)


def bill(calls: VirtualCalls, user: str) -> int:
    """What a user paid for the first run, in micro-credits."""
    name = session_id_of(calls.adapter.name, calls.fake.runs[0].session, user)
    (row,) = calls.fetch(
        "SELECT -coalesce(sum(amount_micros), 0)::bigint AS micros FROM credit_ledger"
        " WHERE session_id = $1 OR entry_id LIKE 'clock:' || $1 || ':%'",
        name,
    )
    return int(row["micros"])


def session(calls: VirtualCalls, user: str) -> dict[str, object]:
    """A user's session of the first run in the record."""
    name = session_id_of(calls.adapter.name, calls.fake.runs[0].session, user)
    (row,) = calls.fetch("SELECT * FROM sessions WHERE session_id = $1", name)
    return dict(row)


def is_true(calls: VirtualCalls, user: str) -> bool:
    """Whether a bill is that of the true time."""
    true_ms = calls.fake.runs[0].true_ms(user)
    low, high = true_ms - 2 * LIVEKIT_MS, true_ms + LIVEKIT_MS
    return low * CREDIT // MINUTE_MS <= bill(calls, user) <= high * CREDIT // MINUTE_MS


@pytest.mark.parametrize("provider", PROVIDERS)
def test_postgres_away_for_ten_minutes_during_a_call(lab: Laboratory, provider: str) -> None:
    async def work(calls: VirtualCalls) -> None:
        fake, cluster = calls.fake, calls.cluster
        run_ = fake.start("default:a")
        ann = fake.join(run_, "ann")
        await calls.advance(MINUTE_MS)
        cluster.lose_postgres()
        await calls.advance(MINUTE_MS)
        bob = fake.join(run_, "bob")
        await calls.advance(MINUTE_MS)
        # The provider hears a 503, and tries again.
        assert calls.answers[503] > 2
        # Whom it has named before is counted all the while.
        (local,) = [one for node in cluster.nodes for one in node.registry if one.meter.sockets]
        assert local.meter.elapsed_at(calls.now) == 3 * MINUTE_MS
        fake.leave(run_, ann)
        await calls.advance(8 * MINUTE_MS)
        taken = calls.answers[200]
        cluster.find_postgres()
        await calls.advance(2 * MINUTE_MS)
        if provider == "stream":
            assert calls.answers[200] >= taken + 2  # LiveKit's tokens are too old: it is swept
        fake.leave(run_, bob)
        fake.end(run_)
        await calls.settled()
        assert is_true(calls, "bob")
        if provider == "stream":
            assert is_true(calls, "ann")
        else:  # when she left is lost for good: she pays up to the last proof
            assert 0 < bill(calls, "ann") <= 3 * CREDIT

    directed(lab, provider, work)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("away_ms", [0, 3_000, MINUTE_MS])
def test_redis_emptied_during_a_call(lab: Laboratory, provider: str, away_ms: int) -> None:
    async def work(calls: VirtualCalls) -> None:
        fake, cluster = calls.fake, calls.cluster
        run_ = fake.start("default:a")
        ann = fake.join(run_, "ann")
        await calls.advance(100_000)
        if away_ms:
            cluster.lose_redis()
            await calls.advance(away_ms)
        cluster.stir()
        cluster.redis.empty()
        cluster.drop_lines()
        if away_ms:
            cluster.find_redis()
        await calls.advance(30_000)
        fake.join(run_, "bob")
        await calls.advance(30_000)
        fake.leave(run_, ann)
        await calls.advance(30_000)
        fake.end(run_)
        await calls.settled()
        for user in ("ann", "bob"):
            assert is_true(calls, user)
            row = session(calls, user)
            assert (row["state"], row["reason"]) == ("ended", "call_ended")

    directed(lab, provider, work)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_end_that_the_provider_refuses_for_a_minute_bills_no_more(
    lab: Laboratory, provider: str
) -> None:
    async def work(calls: VirtualCalls) -> None:
        fake = calls.fake
        run_ = fake.start("default:a")
        fake.join(run_, "bob")
        fake.join(run_, "ann")
        begin = calls.now
        fake.ends_refused = 1_000_000
        await calls.advance(2 * MINUTE_MS + 500)  # the credits last for two minutes
        assert fake.ends
        await calls.advance(MINUTE_MS)
        asked = len(fake.ends)
        assert asked >= 6
        fake.ends_refused = 0
        await calls.advance(MINUTE_MS)
        assert len(fake.ends) > asked
        assert run_.present() == []  # the provider has ended it at last
        await calls.advance(MINUTE_MS)
        asked = len(fake.ends)
        fake.end(run_)
        await calls.settled()
        assert len(fake.ends) == asked  # and is not asked any more
        for user in ("ann", "bob"):
            assert run_.true_ms(user) > 3 * MINUTE_MS
            row = session(calls, user)
            assert (row["reason"], row["limit_name"]) == ("limit", "credits")
            limit_ms = 2 * MINUTE_MS
            assert (row["elapsed_ms"], row["charged_micros"]) == (limit_ms, 2 * CREDIT)
            assert row["segments"] == f"[[{begin}, {begin + limit_ms}]]"
            assert bill(calls, user) == 2 * CREDIT

    directed(lab, provider, work, credits_=2)
