"""Reported minutes, each taken in one atomic step.

The step is ``storage/redis/lua/track_minute.lua``; ``server/usage/reported_minutes.py`` computes
its contents.
"""

from typing import Any, Literal, NamedTuple, cast

import msgspec
import orjson

from protocol.limits import SAFE_INTEGER_MAX
from protocol.metering.records import Record
from protocol.metering.session import Grant, Identity, Standing
from protocol.metering.steps import StartBasis
from storage import limits as storage_limits
from storage.redis.encoding import encode_basis
from storage.redis.live import Live
from storage.redis.timed_scripts import TimedScript

Status = Literal["ok", "duplicate", "metered", "ended", "stale", "refused", "held", "full", "cold"]

_ENCODER = msgspec.json.Encoder()


class ReportedStep(msgspec.Struct, frozen=True):
    """One minute that a client counted, and the session after it."""

    identity: Identity
    standing: Standing
    """The standing after the step; the step was computed from the version before."""
    is_first: bool
    """The session is not in Redis."""
    is_beyond_cap: bool
    """The session would be longer than its terms allow."""
    minute_at: int | None
    """The new minute's beginning; None: there is no new minute, and minutes that were taken before
    and that Redis has lost are put back."""
    month: str
    minutes: dict[int, int]
    """Numbers of minutes by the instant of their beginning: the new minute, and for a session that
    Redis has lost, all minutes that Postgres has."""
    earlier: tuple[str, ...]
    """The months of minutes that Postgres has and Redis has lost, in their order."""
    records: tuple[Record, ...]
    basis: StartBasis | None
    """What a first minute was decided from; None: the minute is not the first."""
    at: int
    """The instant of the step itself, whatever minute it is of."""
    kept_ms: int
    """How long Redis remembers which minutes were taken, in ms."""
    recall: bool = False
    """Metered sessions are asked to give back minutes that they merely hold and this one lacks."""


class ReportVerdict(NamedTuple):
    """The result of a step."""

    status: Status
    detail: str
    """The outbox entry of a taken minute, the number of a duplicate, the limit that refused or is
    held, or what must be loaded first."""


class MinuteReporter:
    """Makes the steps of reported minutes for one process."""

    def __init__(self, live: Live) -> None:
        self._keys = live.keys
        self._live = live
        self._script = TimedScript(live.redis, "track_minute", live.times)

    async def track(self, step: ReportedStep) -> ReportVerdict:
        """Makes a step. Raises ``LiveError`` when Redis does not answer.

        The step may have been made then; a repetition changes nothing.
        """
        keys, identity, standing = self._keys, step.identity, step.standing
        tenant, session_id = identity.tenant, identity.session_id
        partition = keys.partition(tenant)
        argument: dict[str, Any] = {
            "version": standing.version - 1,
            "minute_at": "" if step.minute_at is None else str(step.minute_at),
            "restores": step.minute_at is None,
            "month": step.month,
            "beyond_cap": step.is_beyond_cap,
            "minutes": {str(at): number for at, number in step.minutes.items()},
            "earlier": step.earlier,
            "session_id": session_id,
            "standing": _ENCODER.encode(standing).decode(),
            "at": step.at,
            "grant": _ENCODER.encode(Grant()).decode(),
            "records": _ENCODER.encode(step.records).decode(),
            "session": f"{tenant}/{session_id}",
            "grace_until": standing.grace_until,
            "kept_ms": step.kept_ms,
            "outbox_max": storage_limits.OUTBOX_ENTRIES_MAX if step.records else SAFE_INTEGER_MAX,
            "recall": step.recall,
            "user_id": identity.user_id,
            "publish": self._live.publish,
            "limits_channel": keys.limits_channel(tenant),
            "usage_channel": keys.usage_channel(tenant, identity.user_id),
        }
        if step.is_first:
            argument["identity"] = _ENCODER.encode(identity).decode()
        if step.basis is not None:
            argument["basis"] = encode_basis(step.basis)
        status, detail = await self._script(
            [
                keys.session(tenant, session_id),
                f"{keys.session(tenant, session_id)}:tracked",
                keys.sockets(tenant, session_id),
                keys.account(tenant, identity.account_id),
                keys.member(tenant, identity.user_id),
                keys.organization(tenant),
                keys.outbox(partition),
                keys.live(partition),
                keys.graces(partition),
                keys.recovering(partition),
                keys.epoch(partition),
                keys.prepared(tenant, session_id),
                keys.contained(keys.member(tenant, identity.user_id)),
                keys.contained(keys.organization(tenant)),
            ],
            [orjson.dumps(argument)],
        )
        return ReportVerdict(cast(Status, status.decode()), detail.decode())
