"""Ends calls at the provider when their session has reached a limit.

Counting has stopped before, whatever the provider answers. A request is made again, ever more
rarely, until the facts say that the participant is gone, or the session goes on after a top-up. The
number of requests is bounded. After the death of this process, the next word of the provider that
the participant is still there begins them again on another one.
"""

from collections.abc import Mapping

import msgspec
import structlog

from protocol.metering.states import Phase
from protocol.metering.terms import Enforce
from server.calls import limits as call_limits
from server.calls.facts import Adapter, CallRun, ProviderError
from server.process import Process
from server.runtime.isolation import AWAY, failed

log = structlog.get_logger()

SessionName = tuple[str, str]
"""Tenant and session."""


class _Ending(msgspec.Struct, eq=False):
    """A call that is to end."""

    run: CallRun
    provider: str
    participants: tuple[str | None, ...]
    """None: the whole call ends."""
    attempts: int = 0


class Enforcement:
    """The calls that this process tells providers to end."""

    def __init__(self, process: Process, adapters: Mapping[str, Adapter]) -> None:
        self.process = process
        self.adapters = adapters
        self._endings: dict[SessionName, _Ending] = {}

    def begin(
        self,
        name: SessionName,
        provider: str,
        run: CallRun,
        participants: tuple[str, ...],
        enforce: Enforce,
    ) -> None:
        """Begins to end a participant's call, or the whole call.

        Does nothing if that is under way, or was given up.
        """
        if enforce == "none" or provider not in self.adapters or name in self._endings:
            return
        if len(self._endings) >= call_limits.CALL_ENDINGS_MAX:
            log.error("call_not_ended", session=name[1], error="too many calls are to end")
            return
        whole: tuple[None] = (None,)
        ended = whole if enforce == "call" else participants
        self._endings[name] = _Ending(run, provider, ended)
        self._fire(name)

    def done(self, name: SessionName) -> None:
        """Ends the attempts: the participant is gone, or may stay."""
        self._endings.pop(name, None)

    def _fire(self, name: SessionName) -> None:
        self.process.registry.run(self._attempt(name))

    async def _attempt(self, name: SessionName) -> None:
        ending = self._endings.get(name)
        if ending is None:
            return
        ending.attempts += 1
        try:
            if await self._goes_on(name):
                self.done(name)
                return
            for participant in ending.participants:
                await self.adapters[ending.provider].end(ending.run, participant)
            self.process.metrics.call_ends.labels("agreed").inc()
        except (ProviderError, *AWAY) as error:
            self.process.metrics.call_ends.labels("failed").inc()
            log.warning("call_not_ended", session=name[1], error=str(error))
        except Exception:
            self.process.metrics.call_ends.labels("failed").inc()
            failed("end of a call", session=name[1])
        if ending.attempts >= call_limits.CALL_END_ATTEMPTS_MAX:
            log.error("call_not_ended", session=name[1], attempts=ending.attempts)
            return
        wait_ms = min(
            call_limits.CALL_END_RETRY_MS_MIN << (ending.attempts - 1),
            call_limits.CALL_END_RETRY_MS_MAX,
        )
        at = self.process.clock.now() + wait_ms
        self.process.timers.deadline(at, lambda _: self._fire(name), name[0])

    async def _goes_on(self, name: SessionName) -> bool:
        """Whether the session counts again, after a top-up."""
        found = await self.process.live.attach(*name, read_only=True)
        return found is not None and found.session.standing.phase is Phase.ACTIVE
