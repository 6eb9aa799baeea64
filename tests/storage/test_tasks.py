"""Ending tasks, also those that swallow a cancellation."""

import asyncio

import pytest
from structlog.testing import capture_logs

from storage import limits as storage_limits
from storage.tasks import end


async def test_a_task_that_loses_cancellations_ends_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage_limits, "TASK_CANCELLED_AGAIN_S", 0)
    lost = 0

    async def loses() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(3_600)
            except asyncio.CancelledError:
                lost += 1
                if lost == 3:
                    raise

    task = asyncio.create_task(loses())
    await asyncio.sleep(0)
    await end([task, None])
    assert task.cancelled()
    assert lost == 3


async def test_several_that_wait_together_hear_of_every_cancellation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the parts of ``Money.run`` do."""
    monkeypatch.setattr(storage_limits, "TASK_CANCELLED_AGAIN_S", 0)
    heard = 0

    async def loses() -> None:
        nonlocal heard
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            heard += 1
        await asyncio.sleep(3_600)

    async def run() -> None:
        await asyncio.gather(loses(), loses())

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await end([task])
    assert task.cancelled()
    assert heard == 2


async def test_what_a_task_ended_with_is_logged() -> None:
    async def fails() -> None:
        raise ValueError("a bug")

    task = asyncio.create_task(fails(), name="some work")
    with capture_logs() as logs:
        await end([task])
    assert [line["event"] for line in logs] == []  # it was cancelled before it began
    task = asyncio.create_task(fails(), name="some work")
    await asyncio.wait([task])
    with capture_logs() as logs:
        await end([task])
    assert [(line["event"], line["task"]) for line in logs] == [("task_failed", "some work")]
