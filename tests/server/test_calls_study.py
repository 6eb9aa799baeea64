"""Study sessions: how often pages make a process ask a provider."""

import asyncio

import pytest

from server.calls import limits as call_limits
from server.calls.facts import ProviderError
from server.calls.study import AskedTruths
from storage.rows.calls import CallRunRow
from tests.server.call_facts import CALL, RUN, BookAdapter, truth


def run(provider: str = "stream", name: str = RUN) -> CallRunRow:
    return CallRunRow(
        provider=provider, call_session=name, call_id=CALL, rest_name="", state="active",
        seen_at=0, started_at=0, ended_at=None, swept_at=None,
    )  # fmt: skip


@pytest.fixture
def adapter() -> BookAdapter:
    made = BookAdapter()
    made.truth = truth()
    return made


async def test_an_answer_counts_for_a_while(adapter: BookAdapter) -> None:
    truths = AskedTruths({"stream": adapter})
    now_ms = 1_000_000
    assert await truths.of(run(), now_ms) is not None
    assert await truths.of(run(), now_ms + call_limits.STUDY_ASK_MS - 1) is not None
    assert len(adapter.asked) == 1
    assert await truths.of(run(), now_ms + call_limits.STUDY_ASK_MS) is not None
    assert len(adapter.asked) == 2


async def test_many_pages_at_once_ask_once(adapter: BookAdapter) -> None:
    truths = AskedTruths({"stream": adapter})
    await asyncio.gather(*(truths.of(run(), 1_000_000) for _ in range(20)))
    assert len(adapter.asked) == 1


async def test_a_failure_is_not_asked_about_again_at_once(adapter: BookAdapter) -> None:
    adapter.truth = ProviderError("503")
    truths = AskedTruths({"stream": adapter})
    assert [await truths.of(run(), 1_000_000) for _ in range(3)] == [None] * 3
    assert len(adapter.asked) == 1


async def test_a_known_answer_waits_for_no_place(adapter: BookAdapter) -> None:
    truths = AskedTruths({"stream": adapter})
    assert await truths.of(run(), 1_000_000) is not None
    async with asyncio.timeout(10):
        for _ in range(call_limits.STUDY_ASKS_AT_ONCE_MAX):
            await truths._places.acquire()
        assert await truths.of(run(), 1_000_000) is not None
    assert len(adapter.asked) == 1


async def test_no_more_answers_are_kept_than_a_bound(adapter: BookAdapter) -> None:
    truths = AskedTruths({"stream": adapter})
    for number in range(call_limits.STUDY_ASKS_KEPT_MAX + 5):
        await truths.of(run(name=f"run-{number}"), 1_000_000)
    assert len(truths._known) == call_limits.STUDY_ASKS_KEPT_MAX


async def test_who_has_no_figure_is_not_asked(adapter: BookAdapter) -> None:
    adapter.has_duration = False
    truths = AskedTruths({"stream": adapter})
    assert await truths.of(run(), 1_000_000) is None
    assert await truths.of(run("application"), 1_000_000) is None
    assert adapter.asked == []
