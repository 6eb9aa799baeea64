"""Replays: facts are applied again, and bills compared.

A replay proves that the bills follow from the inbox, and lets a mended meter or adapter look again.
Facts are applied by the processes that serve, or by the caller's own applier.
"""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from server.calls import limits as call_limits
from storage.postgres.calls import CallBill, CallRecords


class ReplayResult(msgspec.Struct, frozen=True):
    """What a replay found."""

    facts: int
    """Facts that were applied again."""
    sessions: int
    """Bills that were compared."""
    changed: tuple[tuple[CallBill, CallBill | None], ...]
    """Bills before and after, where they differ. A session that lives has no bill yet."""
    waiting: int
    """Facts that no process has applied within the time."""


async def replay(
    records: CallRecords,
    span: tuple[int, int],
    now_ms: int,
    wait: Callable[[], Awaitable[None]],
) -> ReplayResult:
    """Applies the facts of a span again, and compares the bills.

    ``wait`` waits a little for the processes that apply them, at most ``CALL_REPLAY_WAITS_MAX``
    times without progress. Facts that arrive within the span meanwhile change bills too: let the
    span end in the past.
    """
    before = await _bills(records, span)
    facts = after = 0
    batch = call_limits.CALL_FACTS_REPLAYED_PER_BATCH
    while True:
        done = await records.replay_facts(*span, after, now_ms, batch)
        facts, after = facts + done.facts, done.last
        waiting = await _applied(records, span, wait)
        if done.facts < batch or waiting:
            break
    await wait()  # for what the last facts may have changed
    now = await _bills(records, span)
    changed = tuple(
        (bill, now.get(name)) for name, bill in sorted(before.items()) if bill != now.get(name)
    )
    return ReplayResult(facts, len(before), changed, waiting)


async def _applied(
    records: CallRecords, span: tuple[int, int], wait: Callable[[], Awaitable[None]]
) -> int:
    """Waits until a span's facts are applied; returns how many are not."""
    waiting = await records.facts_waiting(*span)
    idle = 0
    while waiting and idle < call_limits.CALL_REPLAY_WAITS_MAX:
        await wait()
        left = await records.facts_waiting(*span)
        idle = 0 if left < waiting else idle + 1
        waiting = left
    return waiting


async def _bills(records: CallRecords, span: tuple[int, int]) -> dict[tuple[str, str], CallBill]:
    """The recorded bills of ended sessions in a span."""
    found: dict[tuple[str, str], CallBill] = {}
    after = ("", "")
    while page := await records.bills(*span, after, call_limits.CALL_BILLS_PER_PAGE):
        ended = (bill for bill in page if bill.state == "ended")
        found.update({(bill.tenant, bill.session_id): bill for bill in ended})
        after = (page[-1].tenant, page[-1].session_id)
    return found


async def pause() -> None:
    """Waits a second."""
    await asyncio.sleep(call_limits.CALL_REPLAY_WAIT_S)
