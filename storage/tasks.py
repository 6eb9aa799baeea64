"""Ends tasks that run as long as their owner."""

import asyncio
from collections.abc import Iterable
from typing import Any

import structlog

from storage import limits as storage_limits

log = structlog.get_logger()


async def end(tasks: Iterable["asyncio.Task[Any] | None"]) -> None:
    """Cancels tasks and waits until each has ended, in whatever way.

    Python 3.11 may lose a cancellation that arrives just when a command is answered
    (``asyncio.timeout``, and clients of Redis and Postgres that shield their clean-up). A task that
    loops then continues, so it is cancelled again. A task that uses an ``asyncio.TaskGroup``
    forwards a cancellation only once: do not pass such a task.
    """
    pending = {task for task in tasks if task is not None}
    while pending:
        for task in pending:
            task.cancel()
        done, pending = await asyncio.wait(pending, timeout=storage_limits.TASK_CANCELLED_AGAIN_S)
        for task in done:
            if not task.cancelled() and (error := task.exception()) is not None:
                log.warning("task_failed", task=task.get_name(), error=repr(error))
