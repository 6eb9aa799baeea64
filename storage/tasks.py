"""Tasks that run for as long as something lives, and how they are ended."""

import asyncio
from collections.abc import Iterable
from typing import Any

import structlog

from storage import limits as storage_limits

log = structlog.get_logger()


async def end(tasks: Iterable["asyncio.Task[Any] | None"]) -> None:
    """Cancels tasks and waits until each has ended, whatever it ends with.

    A cancellation that arrives just as a command is answered may be lost in Python 3.11
    (``asyncio.timeout`` and clients of Redis and Postgres that shield their clean-up). A task
    that loops goes on then, so it is cancelled again. A task that uses an
    ``asyncio.TaskGroup`` forwards a cancellation once only: it is not for this function.
    """
    pending = {task for task in tasks if task is not None}
    while pending:
        for task in pending:
            task.cancel()
        done, pending = await asyncio.wait(pending, timeout=storage_limits.TASK_CANCELLED_AGAIN_S)
        for task in done:
            if not task.cancelled() and (error := task.exception()) is not None:
                log.warning("task_failed", task=task.get_name(), error=repr(error))
