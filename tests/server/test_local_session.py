"""A session's requests are answered, and its timers end with it.

The session is on one process.
"""

from collections.abc import Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from protocol.metering.effects import Push
from protocol.metering.records import EntryPosted
from protocol.metering.states import Event, Phase
from protocol.metering.steps import Step
from protocol.wire.errors import ErrorCode, ProtocolError, ServiceError
from server.sessions.local_session import LocalSession
from server.sessions.pending_requests import PendingRequest
from storage.redis.live import StepOutcome
from tests.simulation.cluster import Browser, Cluster, Node
from tests.simulation.people import CREDIT, terms

CHAT = terms("chat")


class Failure:
    """Keeps the error that a request is answered with."""

    def __init__(self) -> None:
        self.errors: list[ProtocolError] = []

    def __call__(self, error: ProtocolError) -> None:
        self.errors.append(error)

    @property
    def request(self) -> PendingRequest:
        return PendingRequest(None, None, failed=self)


@pytest.fixture
async def browser(cluster: Cluster, node: Node) -> Browser:
    """A socket of a session that runs."""
    await cluster.grant(5 * CREDIT)
    made = node.browser()
    await made.start("s1", CHAT)
    return made


def local_of(node: Node) -> LocalSession:
    (local,) = node.registry
    return local


async def test_snapshot_is_of_this_instant(cluster: Cluster, node: Node, browser: Browser) -> None:
    await cluster.advance(12_345)
    shown = local_of(node).snapshot(7)
    assert (shown.id, shown.state, shown.elapsed_ms) == (7, "active", 12_345)


@pytest.mark.parametrize(("kind", "has_day"), [("second", False), ("day", True)])
async def test_day_of_the_free_time_is_the_one_of_the_start(
    cluster: Cluster, node: Node, kind: str, has_day: bool
) -> None:
    await cluster.grant(5 * CREDIT)
    free = terms(kind, free_ms=60_000, free_scope="day" if has_day else "session")
    await node.browser().start("s1", free, free_key="ann//day" if has_day else None)
    day = local_of(node).free_day()
    if has_day:
        assert day is not None
        assert day[0] <= cluster.clock.now() < day[1]
    else:
        assert day is None


async def test_request_fails_when_the_session_is_cleared(
    cluster: Cluster, node: Node, browser: Browser
) -> None:
    local, failure = local_of(node), Failure()
    local.meter.request(Event.PAUSE, cluster.clock.now(), failure.request)
    local.close()
    (error,) = failure.errors
    assert error.code is ErrorCode.UNAVAILABLE
    assert local.settled.is_set
    assert local.subscribers == []


async def test_step_without_an_answer_is_asked_again(
    cluster: Cluster, node: Node, browser: Browser
) -> None:
    local, failure = local_of(node), Failure()
    local.meter.request(Event.PAUSE, cluster.clock.now(), failure.request)
    list(local.meter.effects())
    local.unanswered(ServiceError("away"), made=None)
    assert [error.code for error in failure.errors] == [ErrorCode.UNAVAILABLE]
    assert local.failures == 1
    await cluster.advance(5_000)
    assert local.failures == 0
    assert local.meter.session.standing.phase is Phase.PAUSED


async def test_effect_that_fails_stops_no_other(
    cluster: Cluster, node: Node, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, failure = local_of(node), Failure()
    carried_out: list[Any] = []

    def carry_out(effect: Any) -> None:
        carried_out.append(effect)
        if len(carried_out) == 1:
            raise RuntimeError("a bug of ours")

    effects = [Push(b"{}", failure.request), Push(b"{}", None)]
    monkeypatch.setattr(LocalSession, "_carry_out", lambda _, effect: carry_out(effect))
    monkeypatch.setattr(local.meter, "effects", lambda: effects)
    with capture_logs() as logs:
        local.drain()
    assert carried_out == effects
    assert [error.code for error in failure.errors] == [ErrorCode.UNAVAILABLE]
    assert [entry["effect"] for entry in logs] == ["Push"]
    monkeypatch.undo()


async def test_payment_may_arrive_before_an_older_answer(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer's grant is final, because Redis made it before the payment."""
    await cluster.grant(CREDIT // 2)
    commit = node.live.commit

    async def late(steps: Sequence[Step], name: str | None = None) -> list[StepOutcome]:
        outcomes = await commit(steps, name)
        (session,) = [one.reply.session for one in outcomes if one.reply is not None]
        if session is not None and session.grant.final == "credits":
            monkeypatch.undo()
            entry = EntryPosted(
                tenant="user:ann", account_id="ann", entry_id="late", entry_kind="grant",
                amount_micros=20 * CREDIT, at=cluster.clock.now(),
            )  # fmt: skip
            await node.ledger.enter(entry)
            await node.caught_up(cluster.redis, "late")
        return outcomes

    monkeypatch.setattr(node.live, "commit", late)
    browser = node.browser()
    await browser.start("s1", terms("second"))
    assert node.live.commit == commit
    await cluster.advance(200_000)
    assert browser.all("limit_reached") == []
