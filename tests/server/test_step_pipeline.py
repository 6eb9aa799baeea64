"""Claims on their way to Redis: how many at once, what order."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from protocol import limits
from protocol.metering.effects import Reply
from protocol.metering.steps import Step
from protocol.wire.errors import ProtocolError
from server import limits as server_limits
from server.runtime.metrics import Metrics
from server.sessions.step_pipeline import StepPipeline
from storage import limits as storage_limits
from storage.redis.live import LiveError, StepOutcome
from tests.simulation.cluster import ManualClock

AT_ONCE = server_limits.CLAIM_PIPELINES_MAX * storage_limits.CLAIMS_PER_PIPELINE_MAX


def step_of(account_id: str) -> Step:
    identity = SimpleNamespace(tenant="t", account_id=account_id)
    return cast(Step, SimpleNamespace(before=SimpleNamespace(identity=identity)))


STEP = step_of("ann")


class SlowRedis:
    """A Redis that answers when the test permits, and counts the requests."""

    def __init__(self) -> None:
        self.answering = asyncio.Event()
        self.failing = False
        self.steps = 0
        self.batches: list[int] = []

    def shard(self, _: str) -> object:
        return None

    async def commit(self, steps: Sequence[Step], _: str | None = None) -> list[StepOutcome]:
        self.batches.append(len(steps))
        self.steps += len(steps)
        await self.answering.wait()
        self.steps -= len(steps)
        if self.failing:
            raise LiveError("no answer")
        return [StepOutcome(reply=Reply(accepted=True, session=None))] * len(steps)


class FakeSource:
    """Asks for a step, and notes the outcomes."""

    node = "here"

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.heard: list[Any] = []

    def free_day(self) -> tuple[int, int] | None:
        return None

    def answered(self, _: Step, outcome: StepOutcome) -> None:
        self.heard.append(outcome)

    def unanswered(self, error: ProtocolError, *, made: bool | None) -> None:
        assert error.retryable
        self.heard.append(made)


def pipeline_over(redis: SlowRedis) -> StepPipeline:
    loader = cast(Any, None)
    return StepPipeline(cast(Any, redis), loader, ManualClock(), Metrics(with_process=False))


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_redis_gets_no_more_steps_than_it_manages() -> None:
    redis = SlowRedis()
    pipeline, local_sessions = pipeline_over(redis), [FakeSource() for _ in range(AT_ONCE + 100)]
    for local in local_sessions:
        pipeline.ask(local, STEP)
    await turns()
    assert redis.steps == AT_ONCE
    assert max(redis.batches) == storage_limits.CLAIMS_PER_PIPELINE_MAX
    assert pipeline.waiting == 100 + server_limits.CLAIM_PIPELINES_MAX
    redis.answering.set()
    await pipeline.idle()
    assert all(len(local.heard) == 1 for local in local_sessions)
    assert sum(redis.batches) == len(local_sessions)


async def test_those_waiting_behind_a_lost_answer_learn_at_once() -> None:
    redis = SlowRedis()
    pipeline = pipeline_over(redis)
    sent = [FakeSource() for _ in range(AT_ONCE)]
    behind = [FakeSource(failures=number % 2) for number in range(10)]
    for local in [*sent, *behind]:
        pipeline.ask(local, STEP)
    await turns()
    redis.failing = True
    redis.answering.set()
    await pipeline.idle()
    # The step under way may have been made, and so may the step sent before.
    assert all(local.heard == [None] for local in sent)
    assert [local.heard for local in behind] == [[False], [None]] * 5
    # The next steps are sent as usual.
    redis.failing, later = False, FakeSource()
    pipeline.ask(later, STEP)
    await pipeline.idle()
    assert len(later.heard) == 1


@pytest.mark.parametrize("failing", [False, True])
async def test_a_neighbours_answer_precedes_those_of_a_thousand_sessions(
    failing: bool,
) -> None:
    """A neighbour's answer precedes those of a thousand sessions.

    Its answer came after those of a customer's 256 sessions, in the same batch.
    """
    redis, heard = SlowRedis(), list[str]()

    class NamedSource(FakeSource):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def answered(self, step: Step, outcome: StepOutcome) -> None:
            heard.append(self.name)

        def unanswered(self, error: ProtocolError, *, made: bool | None) -> None:
            heard.append(self.name)

    pipeline = pipeline_over(redis)
    for _ in range(limits.LIVE_SESSIONS_PER_ACCOUNT_MAX):
        pipeline.ask(NamedSource("big"), step_of("big"))
    pipeline.ask(NamedSource("bob"), step_of("bob"))
    redis.failing = failing
    redis.answering.set()
    await pipeline.idle()
    assert len(heard) == limits.LIVE_SESSIONS_PER_ACCOUNT_MAX + 1
    assert heard.index("bob") <= 2 * server_limits.UNITS_PER_TURN
