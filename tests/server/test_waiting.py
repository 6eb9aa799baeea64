"""Events and locks that are small while no task waits for them."""

import asyncio

import pytest

from server.runtime.waiting import Locks, Signal


async def turn() -> None:
    """Lets every task run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_signal_wakes_present_and_later_waiters() -> None:
    signal = Signal()
    waiting = [asyncio.create_task(signal.wait()) for _ in range(2)]
    await turn()
    assert not any(task.done() for task in waiting)
    signal.set()
    await asyncio.gather(*waiting, signal.wait())
    assert signal.is_set


async def test_a_waiter_wakes_though_the_signal_is_cleared_at_once() -> None:
    signal = Signal()
    waiting = asyncio.create_task(signal.wait())
    await turn()
    signal.set()
    signal.clear()
    await waiting
    later = asyncio.create_task(signal.wait())
    await turn()
    assert not later.done()
    signal.set()
    await later


async def test_a_lock_has_one_holder_in_order_of_request() -> None:
    locks, order = Locks(), []

    async def work(number: int) -> None:
        async with locks.hold("a"):
            order.append(number)
            await turn()
            order.append(number)

    await asyncio.gather(*(work(number) for number in range(3)))
    assert order == [0, 0, 1, 1, 2, 2]


async def test_locks_of_different_names_are_independent_and_freed() -> None:
    locks = Locks()
    async with locks.hold("a"), locks.hold("b"):
        assert len(locks) == 2
        waiting = asyncio.create_task(locks.hold("a").__aenter__())
        await turn()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert len(locks) == 0
    with pytest.raises(ZeroDivisionError):
        async with locks.hold("a"):
            raise ZeroDivisionError
    assert len(locks) == 0
