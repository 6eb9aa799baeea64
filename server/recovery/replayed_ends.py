"""Ends of sessions that were appended to an outbox again.

After a loss, a process puts back the sessions that ended with it, then appends their records again.
While Postgres is away too, no counter can be loaded, so nothing is put back; if the process then
dies, only the outbox has these ends. A counter that is loaded before they are in Postgres would
lack them, and what they have used could be used a second time. So every process that recovers a
partition also puts back the ends that wait there.
"""

from collections.abc import Callable, Iterable

import structlog

from protocol.metering.records import SessionEnded
from protocol.metering.session import Identity, session_key
from protocol.wire.errors import ProtocolError
from server import limits as server_limits
from server.recovery.lost_sessions import PutBack, session_of
from server.runtime.isolation import AWAY
from storage.redis.recovery import Restoring

log = structlog.get_logger()


class ReplayedEnds:
    """The ends that wait in outboxes, until Redis has them."""

    def __init__(
        self, restoring: Restoring, put_back: PutBack, own: Callable[[str], object | None]
    ) -> None:
        self._restoring = restoring
        self._put_back = put_back
        self._own = own
        """The end of a session, by the session's key, that this process puts back anyway."""
        self._read_until: dict[int, str] = {}
        self._ends: dict[str, SessionEnded] = {}

    async def find(self, partitions: Iterable[int]) -> None:
        """Reads what was appended again since the last call. Raises ``LiveError``.

        Call it before a counter is loaded.
        """
        for partition in partitions:
            newest = (await self._restoring.live.waiting_in(partition)).replayed
            since = self._read_until.get(partition, "-")
            if newest in ("", since):
                continue
            async for ended in self._restoring.replayed_ends(partition, since, newest):
                key = session_key(ended.tenant, ended.session_id)
                if ended.is_reported or len(self._ends) >= server_limits.REPLAYED_ENDS_MAX:
                    continue  # Postgres's reported minutes are brought by themselves
                self._ends[key] = ended
            self._read_until[partition] = newest

    async def put_back(self) -> set[int]:
        """Puts the ends back; returns the partitions in which that failed."""
        failed: set[int] = set()
        for key, ended in list(self._ends.items()):
            partition = self._restoring.keys.partition(ended.tenant)
            if partition in failed:
                continue
            try:
                if self._own(key) is None:
                    await self._put_back(session_of(_identity_of(ended), ended), ())
            except (ProtocolError, *AWAY) as error:
                log.warning("end_not_put_back", session=key, error=str(error))
                failed.add(partition)
            else:
                self._ends.pop(key, None)
        return failed


def _identity_of(ended: SessionEnded) -> Identity:
    return Identity(
        tenant=ended.tenant,
        session_id=ended.session_id,
        user_id=ended.user_id,
        org_id=ended.org_id,
        account_id=ended.account_id,
        counterpart_id=ended.counterpart_id,
        kind=ended.kind,
        started_at=ended.started_at,
        terms=ended.terms,
        metadata=ended.metadata,
        is_reported=ended.is_reported,
    )
