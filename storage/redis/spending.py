"""What operations take of an account, in single atomic steps.

``storage.redis.live`` does the same for the time of sessions, on the same keys and with the same
care. One script decides, appends its records to the outbox, and publishes on the account's channel,
all in one step. A repetition is safe, because a spend and a hold have ids, and a hold leaves its
state ``open`` once. The caller must load what is cold.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, cast

import msgspec

from protocol.metering.records import EntryPosted, HoldChanged, HoldState, Record
from storage import limits as storage_limits
from storage.redis.encoding import decode_records
from storage.redis.figures import AccountFigures, figures_of
from storage.redis.live import Live, Script
from storage.redis.timed_scripts import TimedScript
from storage.rows.accounts import HoldRow
from storage.rows.months import AdjustmentRow

_ENCODER = msgspec.json.Encoder()
_METADATA = msgspec.json.Decoder(dict[str, Any])

Status = Literal[
    "ok", "repeated", "limit", "held", "short", "late", "cold", "full",
    "absent", "closed", "due", "early", "exceeds",
]  # fmt: skip
"""The answers of scripts; each script explains its answers at its top."""


class AccountName(NamedTuple):
    """A credit account: its tenant, and its id there."""

    tenant: str
    account_id: str


class SpendingReply(msgspec.Struct, frozen=True):
    """The result of a spend, or of a step of a hold."""

    status: Status
    figures: AccountFigures | None
    """The account after the step; None: it is cold."""
    times: int = 0
    """With ``limit``: how often the operation was done in the month."""
    cold: str = ""
    """With ``cold``: what must be loaded, ``account`` or ``operations``."""
    records: tuple[Record, ...] = ()
    """The appended records; with ``repeated``, those of them that still wait in the outbox."""
    hold: HoldRow | None = None
    """The hold after the step, if there is one."""


class Spending:
    """Spends, holds and adjustments in Redis, through the connection of ``live``."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.keys = live.keys
        self._spend = TimedScript(live.redis, "spend", live.times)
        self._hold = TimedScript(live.redis, "hold", live.times)
        self._post = TimedScript(live.redis, "post", live.times)
        self._void = TimedScript(live.redis, "void", live.times)
        self._restore = Script(live.redis, "restore")
        self._amend = Script(live.redis, "amend")
        self._count = Script(live.redis, "count")
        self._adjust = Script(live.redis, "adjust")

    def _channel(self, tenant: str, account_id: str) -> tuple[str, str]:
        return self.live.publish, self.keys.channel(tenant, account_id)

    # --- Spends --------------------------------------------------------------------

    async def spend(
        self,
        entry: EntryPosted,
        *,
        counts: bool = True,
        monthly_limit: int | None = None,
        recall: bool = False,
    ) -> SpendingReply:
        """Takes ``entry`` (kind ``spend`` or ``expire``) from its account, once.

        If ``counts``, an operation counts in the entry's month, and is done at most
        ``monthly_limit`` times. With ``recall``, holders are asked to shrink if only what they hold
        prevents the spend. Raises :class:`LiveError` without an answer.
        """
        tenant, account_id = entry.tenant, entry.account_id
        counted = counts and entry.operation is not None
        answer = await self._spend(
            [
                self.keys.account(tenant, account_id),
                self.keys.spends(tenant, account_id),
                self.keys.operations(tenant, account_id),
                self.keys.outbox(self.keys.partition(tenant)),
                self.keys.recovering(self.keys.partition(tenant)),
                self.keys.applied(tenant, account_id),
            ],
            [
                entry.entry_id,
                -entry.amount_micros,
                entry.entry_kind,
                entry.operation or "",
                entry.month or "",
                int(counted),
                "" if monthly_limit is None else monthly_limit,
                _ENCODER.encode([entry]),
                int(recall),
                *self._channel(tenant, account_id),
                storage_limits.ACCOUNT_IDLE_MS,
                storage_limits.SPENDS_REMEMBERED_MS,
                storage_limits.SPENDS_REMEMBERED_MIN,
                storage_limits.OUTBOX_ENTRIES_MAX,
            ],
        )
        status, fields, detail, records = answer
        made: tuple[Record, ...] = (entry,) if status == b"ok" else ()
        for encoded in records:
            # Other records of the same millisecond are in the same list.
            made += tuple(
                record
                for record in decode_records(encoded)
                if isinstance(record, EntryPosted)
                and (record.account_id, record.entry_id) == (account_id, entry.entry_id)
                and record.tenant == tenant
            )
        return _answer(status, fields, detail, records=made)

    async def operations(
        self, tenant: str, account_id: str, month: str, operation: str
    ) -> int | None:
        """Returns an operation's count of a month; None: it is cold."""
        names = (month, f"{operation}:{month}")
        key = self.keys.operations(tenant, account_id)
        loaded, times = await self.live.ask(self.live.redis.hmget(key, names))
        return int(times or 0) if loaded else None

    async def load_operations(
        self,
        tenant: str,
        account_id: str,
        month: str,
        times: Mapping[str, int],
        holds: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Loads a cold month's operations: counts, and open holds.

        ``holds`` has the operation of each open hold, by its id, as Postgres has it.
        """
        flat = [part for counted in times.items() for part in counted]
        names = [self.keys.operations(tenant, account_id)]
        names += [self.keys.hold(tenant, hold_id) for hold_id in holds]
        await self._count(names, [month, storage_limits.ACCOUNT_IDLE_MS, *holds.values(), *flat])

    # --- Holds ---------------------------------------------------------------------

    async def hold(
        self, change: HoldChanged, *, monthly_limit: int | None = None, recall: bool = False
    ) -> SpendingReply:
        """Opens a hold, once; ``change`` is the opened hold."""
        tenant, account_id = change.tenant, change.account_id
        partition = self.keys.partition(tenant)
        answer = await self._hold(
            [
                self.keys.account(tenant, account_id),
                self.keys.hold(tenant, change.hold_id),
                self.keys.holds(partition),
                self.keys.operations(tenant, account_id),
                self.keys.outbox(partition),
                self.keys.recovering(partition),
            ],
            [
                change.hold_id,
                change.amount_micros,
                change.operation or "",
                change.month,
                "" if monthly_limit is None else monthly_limit,
                _ENCODER.encode([change]),
                int(recall),
                *self._channel(tenant, account_id),
                f"{tenant}/{change.hold_id}",
                change.expires_at,
                storage_limits.HOLDS_PER_ACCOUNT_MAX,
                storage_limits.ACCOUNT_IDLE_MS,
                storage_limits.OUTBOX_ENTRIES_MAX,
                *_fields(change),
            ],
        )
        status, fields, detail, hold = answer
        return _answer(status, fields, detail, hold=hold, records=(change,))

    async def find_hold(self, tenant: str, hold_id: str) -> HoldRow | None:
        """Returns a hold in Redis; None: Redis does not have it."""
        found = await self.live.ask(self.live.redis.hgetall(self.keys.hold(tenant, hold_id)))
        return hold_from(found)

    async def restore_hold(self, hold: HoldRow) -> bool:
        """Gives a hold its recorded state; returns whether it changed.

        After a loss, Postgres knows the state that Redis lacks.
        """
        answer = await self._restore(
            [
                self.keys.hold(hold.tenant, hold.hold_id),
                self.keys.holds(self.keys.partition(hold.tenant)),
                self.keys.account(hold.tenant, hold.account_id),
                self.keys.operations(hold.tenant, hold.account_id),
            ],
            [
                f"{hold.tenant}/{hold.hold_id}",
                hold.expires_at,
                hold.hold_id,
                hold.amount_micros,
                hold.state,
                *self._channel(hold.tenant, hold.account_id),
                storage_limits.ACCOUNT_IDLE_MS,
                f"{hold.operation or ''}:{hold.month}",
                *_fields(hold),
            ],
        )
        return bool(int(answer))

    async def amend_hold(self, ended: HoldRow, now_ms: int) -> bool:
        """Gives an ended hold its recorded end; returns whether it changed."""
        tenant, account_id = ended.tenant, ended.account_id
        answer = await self._amend(
            [
                self.keys.hold(tenant, ended.hold_id),
                self.keys.account(tenant, account_id),
                self.keys.operations(tenant, account_id),
                self.keys.applied(tenant, account_id),
            ],
            [
                ended.state,
                ended.posted_micros,
                posted_id(ended.hold_id),
                now_ms,
                *self._channel(tenant, account_id),
                storage_limits.ACCOUNT_IDLE_MS,
            ],
        )
        return bool(int(answer))

    async def post(self, hold: HoldRow, entry: EntryPosted) -> SpendingReply:
        """Charges ``entry`` (kind ``post``) to a hold; gives back the rest.

        The hold keeps the entry's metadata, so that :func:`posted_records` finds the metadata
        again.
        """
        micros = -entry.amount_micros
        records = posted_records(hold, entry)
        tenant, account_id = hold.tenant, hold.account_id
        partition = self.keys.partition(tenant)
        status, fields, found = await self._post(
            [
                self.keys.account(tenant, account_id),
                self.keys.hold(tenant, hold.hold_id),
                self.keys.holds(partition),
                self.keys.outbox(partition),
                self.keys.spends(tenant, account_id),
                self.keys.applied(tenant, account_id),
            ],
            [
                entry.entry_id,
                micros,
                entry.at,
                _ENCODER.encode(records),
                *self._channel(tenant, account_id),
                f"{tenant}/{hold.hold_id}",
                storage_limits.ACCOUNT_IDLE_MS,
                storage_limits.HOLD_KEPT_MS,
                b"" if entry.metadata is None else _ENCODER.encode(entry.metadata),
            ],
        )
        return _answer(status, fields, hold=found, records=records)

    async def void(
        self, hold: HoldRow, now_ms: int, state: Literal["voided", "expired"] = "voided"
    ) -> SpendingReply:
        """Gives back what is held, after a failure or expiry."""
        change = change_of(hold, state, now_ms)
        tenant, account_id = hold.tenant, hold.account_id
        partition = self.keys.partition(tenant)
        status, fields, found = await self._void(
            [
                self.keys.account(tenant, account_id),
                self.keys.hold(tenant, hold.hold_id),
                self.keys.holds(partition),
                self.keys.operations(tenant, account_id),
                self.keys.outbox(partition),
            ],
            [
                hold.hold_id,
                state,
                now_ms,
                _ENCODER.encode([change]),
                *self._channel(tenant, account_id),
                f"{tenant}/{hold.hold_id}",
                storage_limits.ACCOUNT_IDLE_MS,
                storage_limits.HOLD_KEPT_MS,
            ],
        )
        return _answer(status, fields, hold=found, records=(change,))

    async def holds_due(self, now_ms: int) -> list[tuple[str, str]]:
        """Returns expired holds: tenant and id, a bounded number of each partition."""
        async with self.live.redis.pipeline(transaction=False) as pipeline:
            for partition in range(self.keys.partitions):
                pipeline.zrange(
                    self.keys.holds(partition),
                    "-inf",
                    now_ms,
                    byscore=True,
                    offset=0,
                    num=storage_limits.HOLDS_EXPIRED_PER_PASS_MAX,
                )
            found = await self.live.ask(pipeline.execute())
        due = []
        for names in found:
            for name in names:
                tenant, _, hold_id = name.decode().rpartition("/")
                due.append((tenant, hold_id))
        return due

    async def forget_hold(self, tenant: str, hold_id: str) -> None:
        """Stops watching a hold that is open nowhere."""
        key = self.keys.holds(self.keys.partition(tenant))
        await self.live.ask(self.live.redis.zrem(key, f"{tenant}/{hold_id}"))

    # --- Months --------------------------------------------------------------------

    async def adjust(self, adjustment: AdjustmentRow) -> bool:
        """Applies a correction to Redis's months once; returns whether any changed."""
        tenant, user_id = adjustment.tenant, adjustment.user_id
        changed = await self._adjust(
            [self.keys.member(tenant, user_id), self.keys.organization(tenant)],
            [
                f"{user_id}/{adjustment.entry_id}",
                adjustment.month,
                adjustment.minutes,
                self.live.publish,
                self.keys.limits_channel(tenant),
                self.keys.usage_channel(tenant, user_id),
            ],
        )
        return bool(int(changed))


def change_of(
    hold: HoldRow, state: HoldState, changed_at: int, posted_micros: int = 0
) -> HoldChanged:
    """Returns the record of a hold's state since an instant."""
    return HoldChanged(
        tenant=hold.tenant,
        account_id=hold.account_id,
        hold_id=hold.hold_id,
        state=state,
        amount_micros=hold.amount_micros,
        posted_micros=posted_micros,
        operation=hold.operation,
        user_id=hold.user_id,
        month=hold.month,
        created_at=hold.created_at,
        expires_at=hold.expires_at,
        changed_at=changed_at,
        metadata=hold.metadata,
    )


def posted_id(hold_id: str) -> str:
    """Returns the id of a posted hold's entry, as ``write_entries.sql`` does."""
    return f"post:{hold_id}"


def posted_records(hold: HoldRow, entry: EntryPosted) -> tuple[Record, ...]:
    """Returns the records to append when ``entry`` is charged to a hold."""
    change = change_of(hold, "posted", entry.at, -entry.amount_micros)
    change = msgspec.structs.replace(change, metadata=entry.metadata)
    # No ledger has an entry that moved nothing; but an operation is still kept as usage.
    if not entry.amount_micros and entry.operation is None:
        return (change,)
    return (entry, change)


def _answer(
    status: bytes,
    fields: list[bytes],
    detail: bytes = b"",
    *,
    hold: list[bytes] | None = None,
    records: tuple[Record, ...] = (),
) -> SpendingReply:
    made = cast(Status, status.decode())
    return SpendingReply(
        status=made,
        figures=figures_of(_pairs(fields)),
        times=int(detail) if made == "limit" else 0,
        cold=(detail.decode() or "account") if made == "cold" else "",
        records=records if made in ("ok", "repeated") else (),
        hold=hold_from(_pairs(hold or [])),
    )


def _pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _fields(hold: HoldChanged | HoldRow) -> list[str | int | bytes]:
    """Returns the fields of a hold's hash, as a flat list."""
    fields: dict[str, str | int | bytes] = {
        "tenant": hold.tenant,
        "id": hold.hold_id,
        "account": hold.account_id,
        "state": hold.state,
        "amount": hold.amount_micros,
        "posted": hold.posted_micros,
        "operation": hold.operation or "",
        "user": hold.user_id or "",
        "month": hold.month,
        "created_at": hold.created_at,
        "expires_at": hold.expires_at,
        "changed_at": hold.changed_at,
        "metadata": b"" if hold.metadata is None else _ENCODER.encode(hold.metadata),
    }
    return [part for field in fields.items() for part in field]


def hold_from(fields: Mapping[bytes, bytes]) -> HoldRow | None:
    """Returns the hold of its hash's fields; None: there are no fields."""
    if not fields:
        return None
    text = {name.decode(): value.decode() for name, value in fields.items()}
    return HoldRow(
        tenant=text["tenant"],
        hold_id=text["id"],
        account_id=text["account"],
        state=cast(HoldState, text["state"]),
        amount_micros=int(text["amount"]),
        posted_micros=int(text["posted"]),
        operation=text["operation"] or None,
        user_id=text["user"] or None,
        month=text["month"],
        created_at=int(text["created_at"]),
        expires_at=int(text["expires_at"]),
        changed_at=int(text["changed_at"]),
        metadata=_METADATA.decode(text["metadata"]) if text["metadata"] else None,
    )
