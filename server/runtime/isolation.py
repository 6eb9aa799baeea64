"""Isolation: one failure among many is logged, and the others continue.

Many things happen for many sessions, sockets or processes in one loop: timers of the same
millisecond, answers of one pipeline, messages to all sockets of an account. An exception there is a
bug of ours in one of them, and must not stop the rest. Such a loop calls :func:`isolated` for each,
or :func:`failed` in an ``except Exception`` of its own.

A ``CancelledError`` is no failure and passes through.
"""

import contextlib
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final, TypeVar

import structlog

from protocol.wire.errors import ProtocolError
from server import limits as server_limits
from storage.postgres.database import UnavailableError
from storage.redis.scripts import LiveError

log = structlog.get_logger()

Item = TypeVar("Item")
AWAY: Final = (LiveError, UnavailableError)
"""Redis or Postgres is away, for the other items too, so none of them is tried."""


class _Budget:
    """Limits the failures that are logged in one second."""

    def __init__(self) -> None:
        self.second = 0
        self.logged = 0
        self.unlogged = 0

    def take(self) -> bool:
        second = int(time.monotonic())
        if second != self.second:
            self.second, self.logged = second, 0
        self.logged += 1
        if self.logged > server_limits.FAILURES_LOGGED_PER_SECOND_MAX:
            self.unlogged += 1
            return False
        return True


_budget = _Budget()


def isolated(what: str, act: Callable[..., object], *arguments: object, **names: object) -> bool:
    """Calls ``act(*arguments)``; returns False after an exception.

    The exception is logged as ``what`` with ``names``.
    """
    try:
        act(*arguments)
    except Exception:
        failed(what, **names)
        return False
    return True


async def for_each(
    what: str, items: Iterable[Item], act: Callable[[Item], Awaitable[object]]
) -> None:
    """Awaits ``act`` for each item, even after failures.

    Failures are logged, and the first is raised after all items. ``LiveError`` and
    ``UnavailableError`` are raised at once.
    """
    failures: list[Exception] = []
    for item in items:
        try:
            await act(item)
        except AWAY:
            raise
        except Exception as error:
            _log(what, error, {})
            failures.append(error)
    if failures:
        raise failures[0]


@contextlib.contextmanager
def alone(what: str) -> Iterator[None]:
    """Logs an exception of this block and ends the block.

    The caller tries again later.
    """
    try:
        yield
    except (*AWAY, ProtocolError) as error:
        log.warning("put_off", what=what, error=str(error))
    except Exception as error:
        _log(what, error, {})


def failed(what: str, **names: object) -> None:
    """Logs the exception in progress: ``what`` failed, for one of many."""
    _log(what, sys.exception(), names)


def _log(what: str, error: BaseException | None, names: dict[str, object]) -> None:
    if isinstance(error, ProtocolError):
        log.warning("failed_alone", what=what, error=str(error), **names)
        return
    if _budget.take():
        unlogged, _budget.unlogged = _budget.unlogged, 0
        if unlogged:
            names["unlogged_before"] = unlogged
        log.error("failed_alone", what=what, exc_info=error, **names)
