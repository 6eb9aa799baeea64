"""Ends calls at the provider when their session has reached a limit.

Counting has stopped before, whatever the provider answers. A request is made again, at last once a
minute, as long as the facts and the sweeps say that the participant is there. That ends when the
participant is gone, when the session goes on after a top-up, or when the provider has said nothing
for long: its next word that the participant is still there begins it again, on any process.
"""

from collections.abc import Mapping

import msgspec
import structlog

from protocol.metering.states import Phase
from protocol.metering.terms import Enforce
from server.calls import limits as call_limits
from server.calls.billing import Billing
from server.calls.facts import Adapter, CallRun, ProviderError
from server.calls.timeline import heard_until, timeline
from server.process import Process
from server.runtime.isolation import AWAY, failed
from storage.postgres.call_clocks import CallClocks

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

    def __init__(
        self, process: Process, adapters: Mapping[str, Adapter], clocks: CallClocks
    ) -> None:
        self.process = process
        self.adapters = adapters
        self.clocks = clocks
        self._endings: dict[SessionName, _Ending] = {}

    @property
    def is_busy(self) -> bool:
        """Whether a call is to end that has not ended."""
        return bool(self._endings)

    def begin(
        self,
        name: SessionName,
        provider: str,
        run: CallRun,
        participants: tuple[str, ...],
        enforce: Enforce,
    ) -> None:
        """Begins to end a participant's call, or the whole call.

        Does nothing if that is under way.
        """
        if enforce == "none" or provider not in self.adapters or name in self._endings:
            return
        if len(self._endings) >= call_limits.CALL_ENDINGS_MAX:
            log.error("call_not_ended", session=name[1], error="too many calls are to end")
            return
        whole: tuple[None] = (None,)
        ended = whole if enforce == "call" else participants
        self._fire(name, _Ending(run, provider, ended))

    def done(self, name: SessionName) -> None:
        """Ends the attempts: the participant is gone, or may stay."""
        self._endings.pop(name, None)

    def _fire(self, name: SessionName, ending: _Ending) -> None:
        if ending.attempts and self._endings.get(name) is not ending:
            return  # it is done, or has begun anew
        self._endings[name] = ending
        self.process.registry.run(self._attempt(name, ending))

    async def _attempt(self, name: SessionName, ending: _Ending) -> None:
        ending.attempts += 1
        try:
            if await self._goes_on(name) or await self._is_gone(name):
                if self._endings.get(name) is ending:
                    self.done(name)
                return
            for participant in ending.participants:
                await self.adapters[ending.provider].end(ending.run, participant)
            self.process.metrics.call_ends.labels("agreed").inc()
        except (ProviderError, *AWAY) as error:
            self.process.metrics.call_ends.labels("failed").inc()
            log.warning(
                "call_not_ended", session=name[1], attempts=ending.attempts, error=str(error)
            )
        except Exception:
            self.process.metrics.call_ends.labels("failed").inc()
            failed("end of a call", session=name[1])
        wait_ms = min(
            call_limits.CALL_END_RETRY_MS_MIN << min(ending.attempts - 1, 16),
            call_limits.CALL_END_RETRY_MS_MAX,
        )
        at = self.process.clock.now() + wait_ms
        self.process.timers.deadline(at, lambda _: self._fire(name, ending), name[0])

    async def _goes_on(self, name: SessionName) -> bool:
        """Whether the session counts again, after a top-up."""
        found = await self.process.live.attach(*name, read_only=True)
        return found is not None and found.session.standing.phase is Phase.ACTIVE

    async def _is_gone(self, name: SessionName) -> bool:
        """Whether the participant is gone, or not confirmed for long."""
        call = await self.clocks.call_of(*name)
        if call is None:
            return True
        now_ms = self.process.clock.now()
        billing = msgspec.json.decode(call.mapping, type=Billing)
        is_present = timeline(call.facts, now_ms, billing.devices).is_present
        return not is_present or now_ms >= heard_until(call, now_ms)
