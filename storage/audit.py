"""The audit: whether every promise about credits and minutes holds.

The audit has two parts. First, one statement checks the record against itself (``sql/audit.sql``):
for every account grants - burnt - spent - expired + adjusted = balance, every credit is attributed,
a hold is in one state, minutes and months add up. Then the audit compares Redis with the record. An
account's balance in Redis must be the ledger's, without what waits in the inbox and with what waits
in the outbox. What the account holds must be what its sessions and open holds have.

Both parts may run on a live installation. A second look there distinguishes work under way from
errors.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from protocol.metering.records import EntryPosted, MinuteUsed, Record
from protocol.metering.session import SessionState
from protocol.metering.states import Phase
from storage import limits as storage_limits
from storage.postgres.records import Records
from storage.redis.cluster import client_of
from storage.redis.encoding import decode_records, session_of
from storage.redis.figures import figures_of
from storage.redis.live import Live
from storage.redis.spending import AccountName, hold_from
from storage.rows.findings import AccountAudited, AuditFinding


class Audit(msgspec.Struct, frozen=True):
    """The result of an audit."""

    findings: tuple[AuditFinding, ...]
    accounts: int = 0
    """Accounts in Redis that were compared with the record."""
    restless: int = 0
    """Accounts that were not compared: they changed during every look, or had too many entries on
    their way."""


async def audit_record(records: Records) -> tuple[AuditFinding, ...]:
    """Returns the errors of the record that two looks both find.

    A session's end may be written a moment before its minutes.
    """
    found = await records.audit()
    return tuple(finding for finding in await records.audit() if finding in found) if found else ()


async def audit_live(live: Live, records: Records) -> Audit:
    """Returns the differences of Redis from the record. Raises ``LiveError`` without Redis."""
    findings: list[AuditFinding] = []
    accounts = restless = 0
    sessions: dict[AccountName, list[str]] = {}
    for partition in range(live.keys.partitions):
        for name, key in await _sessions_of(live, partition):
            sessions.setdefault(name, []).append(key)
    holds = await _holds_by_account(live)
    for name in await _accounts(live):
        found = await _audit_account(
            live, records, name, sessions.get(name, []), holds.get(name, [])
        )
        accounts += 1
        if found is None:
            restless += 1
        else:
            findings += found
    return Audit(tuple(findings), accounts, restless)


class _AccountReading(NamedTuple):
    """An account at one instant, with everything that belongs to it."""

    account: dict[bytes, bytes]
    outbox: list[tuple[bytes, dict[bytes, bytes]]]
    sessions: list[SessionState]
    holds: list[int]
    """The micro-credits of each open hold."""


async def _audit_account(
    live: Live, records: Records, name: AccountName, sessions: list[str], holds: list[str]
) -> list[AuditFinding] | None:
    """Returns an account's errors; None: it changed during every look."""
    outbox = live.keys.outbox(live.keys.partition(name.tenant))
    if await live.ask(live.redis.xlen(outbox)) > storage_limits.OUTBOX_ENTRIES_AUDITED_MAX:
        return None
    for _ in range(storage_limits.AUDIT_LOOKS_MAX):
        look = await _look(live, name, sessions, holds)
        if not look.account:
            return []  # the account has left Redis
        waiting = list(_waiting(name, look.outbox))
        entries = [record.entry_id for record in waiting if isinstance(record, EntryPosted)]
        minutes = [record for record in waiting if isinstance(record, MinuteUsed)]
        recorded = await records.audit_account(*name, entries, minutes)
        applied = await _applied(live, name, recorded)
        again = await _look(live, name, sessions, holds)
        if again == look:
            return list(_compare(name, look, waiting, recorded, applied))
    return None


def _compare(
    name: AccountName,
    look: _AccountReading,
    waiting: Iterable[Record],
    recorded: AccountAudited,
    applied: frozenset[str],
) -> Iterable[AuditFinding]:
    figures = figures_of(look.account)
    assert figures is not None
    outbox = sum(_micros_of(record) for record in waiting if not _is_in(record, recorded))
    inbox = sum(micros for entry, micros in recorded.inbox.items() if entry not in applied)
    live = [one for one in look.sessions if one.standing.phase is not Phase.ENDED]
    standings = [session.standing for session in live]
    # Settled in a minute that is not complete, and therefore not in any record yet.
    begun = sum(one.charged_micros - one.minute_charged_micros for one in standings)
    if figures.balance_micros != recorded.balance_micros - inbox + outbox - begun:
        yield _finding(
            "redis balance", name,
            f"{figures.balance_micros} in Redis is not {recorded.balance_micros} in the ledger "
            f"- {inbox} in the inbox + {outbox} in the outbox - {begun} of minutes under way",
        )  # fmt: skip
    reserved = sum(look.holds)
    held = reserved + sum(session.grant.held_micros for session in live)
    if (figures.held_micros, figures.reserved_micros) != (held, reserved):
        yield _finding(
            "redis holds", name,
            f"holds {figures.held_micros}, {figures.reserved_micros} of it for operations; its "
            f"sessions and open holds have {held} and {reserved}",
        )  # fmt: skip
    charged = sum(one.charged_micros for one in standings)
    if figures.gross_micros - figures.balance_micros != charged:
        yield _finding(
            "redis sessions", name,
            f"was charged {figures.gross_micros - figures.balance_micros} by live sessions, "
            f"which have {charged}",
        )  # fmt: skip
    alive = int(look.account.get(b"live", 0))
    if alive != len(live) + len(look.holds):
        yield _finding(
            "redis live", name,
            f"counts {alive}, of {len(live)} sessions and {len(look.holds)} open holds",
        )  # fmt: skip


def _finding(rule: str, name: AccountName, detail: str) -> AuditFinding:
    return AuditFinding(rule, name.tenant, name.account_id, detail)


def _micros_of(record: Record) -> int:
    """Returns what a record adds to its account's balance, in micro-credits."""
    if isinstance(record, MinuteUsed):
        return -record.credits_micros
    return record.amount_micros if isinstance(record, EntryPosted) else 0


def _is_in(record: Record, recorded: AccountAudited) -> bool:
    if isinstance(record, MinuteUsed):
        return f"{record.session_id}/{record.minute}" in recorded.minutes
    return isinstance(record, EntryPosted) and record.entry_id in recorded.entry_ids


def _waiting(name: AccountName, outbox: list[Any]) -> Iterable[Record]:
    """Yields the account's records in its partition's outbox, each once."""
    seen = set()
    for _, fields in outbox:
        for record in decode_records(fields[b"r"]):
            if not isinstance(record, EntryPosted | MinuteUsed):
                continue
            if (record.tenant, record.account_id) != name:
                continue
            key = (
                (record.session_id, record.minute)
                if isinstance(record, MinuteUsed)
                else (record.entry_id, -1)
            )
            if key not in seen:
                seen.add(key)
                yield record


async def _look(
    live: Live, name: AccountName, sessions: list[str], holds: list[str]
) -> _AccountReading:
    """Reads everything about an account at one instant."""
    keys = live.keys
    async with live.redis.pipeline(transaction=True) as pipeline:
        pipeline.hgetall(keys.account(*name))
        pipeline.xrange(keys.outbox(keys.partition(name.tenant)))
        for key in sessions:
            pipeline.hmget(key, ("identity", "standing", "grant", "final"))
        for key in holds:
            pipeline.hgetall(key)
        account, outbox, *rest = await live.ask(pipeline.execute())
    found = rest[: len(sessions)]
    open_holds = [hold_from(fields) for fields in rest[len(sessions) :]]
    return _AccountReading(
        account=account,
        outbox=outbox,
        sessions=[session_of(fields) for fields in found if fields[0]],
        holds=[hold.amount_micros for hold in open_holds if hold and hold.state == "open"],
    )


async def _applied(live: Live, name: AccountName, recorded: AccountAudited) -> frozenset[str]:
    """Returns the entries of the inbox that Redis has already applied."""
    taken = set()
    for entry_id in recorded.inbox:
        if await live.ask(live.redis.zscore(live.keys.applied(*name), entry_id)) is not None:
            taken.add(entry_id)
    return frozenset(taken)


async def _sessions_of(live: Live, partition: int) -> list[tuple[AccountName, str]]:
    """Returns the keys of a partition's live sessions, with their accounts."""
    found = []
    for member in await live.ask(live.redis.smembers(live.keys.live(partition))):
        tenant, _, session_id = member.decode().rpartition("/")
        key = live.keys.session(tenant, session_id)
        fields = ("identity", "standing", "grant", "final")
        values = await live.ask(live.redis.hmget(key, fields))
        if values[0]:
            identity = session_of(values).identity
            found.append((AccountName(tenant, identity.account_id), key))
    return found


async def _holds_by_account(live: Live) -> dict[AccountName, list[str]]:
    """Returns the keys of open holds, by their accounts."""
    found: dict[AccountName, list[str]] = {}
    for partition in range(live.keys.partitions):
        for member in await live.ask(live.redis.zrange(live.keys.holds(partition), 0, -1)):
            tenant, _, hold_id = member.decode().rpartition("/")
            key = live.keys.hold(tenant, hold_id)
            hold = hold_from(await live.ask(live.redis.hgetall(key)))
            if hold is not None:
                found.setdefault(AccountName(tenant, hold.account_id), []).append(key)
    return found


async def _accounts(live: Live) -> list[AccountName]:
    """Returns the accounts that are in Redis."""
    found = set()
    for partition in range(live.keys.partitions):
        prefix = f"{{p{partition}}}:account:"
        redis, cursor = await live.ask(client_of(live.redis, prefix)), 0
        while True:
            cursor, names = await live.ask(
                redis.scan(cursor, match=f"{prefix}*", count=storage_limits.AUDIT_KEYS_PER_SCAN)
            )
            for name in names:
                tenant, _, account_id = name.decode().removeprefix(prefix).rpartition("/")
                found.add(AccountName(tenant, account_id))
            if cursor == 0:
                break
    return sorted(found)
