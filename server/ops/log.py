"""The operators' log: what operators intend, then what came of it.

The row of an intent is written before anything is done: without it the action is refused as
``unavailable``. An action id follows from the idempotency key and the body, so an attempt after a
crash finds the row of the first one.
"""

import hashlib
import secrets
from collections.abc import Callable

import structlog

from server.access.principals import Principal
from server.ops import limits as ops_limits
from storage.postgres.operators import OperatorRecords
from storage.postgres.records import UnavailableError
from storage.rows.operators import ActionIntent, Outcome

log = structlog.get_logger("taximeter.operators")


class OperatorsLog:
    """Writes the operators' log. ``now_ms`` gives wall time in epoch milliseconds."""

    def __init__(self, records: OperatorRecords, now_ms: Callable[[], int]) -> None:
        self.records = records
        self._now_ms = now_ms

    async def begin(
        self,
        principal: Principal,
        action: str,
        target: str,
        *,
        action_id: str,
        request_id: str,
        tenant: str | None = None,
        reason: str | None = None,
        before: object = None,
    ) -> None:
        """Writes the intent, or finds it there; raises ``UnavailableError``."""
        intent = ActionIntent(
            action_id=action_id,
            at=self._now_ms(),
            actor=principal.user_id or "",
            via=principal.via,
            action=action,
            target=target,
            tenant=tenant,
            reason=reason,
            before=before,
            request_id=request_id,
        )
        await self.records.begin_action(intent)

    async def finish(
        self, action_id: str, outcome: Outcome, code: str | None, after: object
    ) -> None:
        """Writes the outcome.

        Postgres may be away now. What was done is done, and its intent has no outcome then.
        """
        try:
            await self.records.finish_action(action_id, self._now_ms(), outcome, code, after)
        except UnavailableError as error:
            log.warning("outcome_not_logged", action_id=action_id, error=str(error))


def action_id_of(principal: Principal, target: str, key: str | None, body: bytes) -> str:
    """The id of an action.

    It is the same at every attempt with an idempotency key.
    """
    if key is None:
        return f"act:{secrets.token_hex(16)}"
    parts = (principal.kind, principal.user_id or "", target, key)
    digest = hashlib.sha256("\n".join(parts).encode() + b"\n" + body)
    return f"act:{digest.hexdigest()[:32]}"


def kept_answer(body: bytes) -> bytes | None:
    """An answer that the log keeps; None for a long one."""
    return body if len(body) <= ops_limits.LOGGED_ANSWER_BYTES_MAX else None
