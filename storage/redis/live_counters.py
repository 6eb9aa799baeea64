"""The counters in Redis: accounts, months, and free time."""

import secrets
from collections.abc import Sequence
from typing import Any

import orjson
from redis.asyncio import Redis

from protocol.metering.projection import MonthProjection
from protocol.metering.session import Identity
from storage import limits as storage_limits
from storage.redis.encoding import month_of
from storage.redis.figures import AccountFigures, MonthFigures, figures_of, month_figures_of
from storage.redis.keys import Keys
from storage.redis.live_client import LiveClient
from storage.redis.scripts import Script
from storage.redis.timed_scripts import TimedScript
from storage.rows.accounts import AccountRecord

ANY = "any"
"""Stands for every record that was appended again."""


class LiveCounters(LiveClient):
    """The counters, read, loaded and changed by atomic steps."""

    def __init__(self, redis: Redis, keys: Keys, node: str) -> None:
        super().__init__(redis, keys, node)
        self._account = Script(redis, "account")
        self._credit = Script(redis, "credit")
        self._load = Script(redis, "load")
        self._usage = Script(redis, "usage")
        self._limit = TimedScript(redis, "limit", self.times)

    async def account(self, tenant: str, account_id: str) -> AccountFigures | None:
        """Returns the account; None: it is cold and must be loaded."""
        answer = orjson.loads(await self._account([self.keys.account(tenant, account_id)], []))
        parts = [part.encode() for part in answer]
        return figures_of(dict(zip(parts[::2], parts[1::2], strict=True)))

    async def month(
        self, tenant: str, user_id: str, month: str
    ) -> tuple[MonthProjection, MonthProjection]:
        """Returns a member's and organisation's counters of one month."""
        names = ("limit", f"used:{month}", "active", f"held:{month}", "overage")
        counters = []
        for key in (self.keys.member(tenant, user_id), self.keys.organization(tenant)):
            limit, *figures, overage = await self.ask(self.redis.hmget(key, names))
            counters.append(
                month_of(
                    month,
                    [
                        b"" if overage == b"1" else limit or b"",
                        *(figure or b"0" for figure in figures),
                    ],
                )
            )
        return counters[0], counters[1]

    async def usage(self, tenant: str, user_id: str, month: str) -> MonthFigures | None:
        """Returns what is used of a month.

        None: a counter of it is cold, and must be loaded.
        """
        keys = [self.keys.member(tenant, user_id), self.keys.organization(tenant)]
        answer = await self._usage(keys, [month])
        return month_figures_of(orjson.loads(answer)) if answer else None

    async def free_used(self, identity: Identity) -> int | None:
        """Returns a shared allowance's used time; None: it is cold."""
        key = self.keys.free(identity.tenant, identity.free_key or "")
        used = await self.ask(self.redis.hget(key, "used"))
        return None if used is None else int(used)

    async def load_account(
        self,
        tenant: str,
        account_id: str,
        found: AccountRecord,
        *,
        asserting: bool = False,
        now_ms: int = 0,
        replayed: str | None = None,
    ) -> bool:
        """Puts a cold account into Redis.

        False: its partition recovers from a loss.

        During recovery, only a process that is ``asserting`` sessions loads anything.

        ``replayed`` is the newest record that was appended again, before Postgres was read, and
        nothing is loaded if there is a newer one by now; None: that does not matter.

        The account's versions begin at ``now_ms``, in epoch milliseconds. That is above all
        versions before Redis lost the account, so processes that have shown it all the time see
        that they missed some.

        An account leaves Redis only after a day without a live session, and is loaded only while
        the partition's outbox has nothing older than that. So the figures of Postgres are complete
        when the account is loaded.
        """
        fields: dict[str, str | int] = {"balance": found.balance_micros, "position": found.position}
        fields["version"] = now_ms
        holds = found.open_holds
        if holds:
            reserved_micros = sum(hold.amount_micros for hold in holds)
            fields |= {"held": reserved_micros, "reserved": reserved_micros}
            fields |= {"holds": len(holds), "live": len(holds)}
            fields |= {f"h:{hold.hold_id}": 1 for hold in holds}
        for session in found.recorded:
            fields[f"i:{session.session_id}"] = session.charged_micros
        names = (self.keys.account(tenant, account_id), self.keys.applied(tenant, account_id))
        ids = found.recent_entry_ids
        return await self._load_counter(tenant, names, fields, ids, asserting, replayed)

    async def load_month(
        self,
        tenant: str,
        key: str,
        fields: dict[str, str | int],
        *,
        asserting: bool = False,
        replayed: str | None = None,
    ) -> bool:
        """Puts a cold month or free time counter into Redis.

        Returns the same as ``load_account``.
        """
        names = (key, f"{key}:applied")
        return await self._load_counter(tenant, names, fields, (), asserting, replayed)

    async def _load_counter(
        self,
        tenant: str,
        names: tuple[str, str],
        fields: dict[str, str | int],
        entry_ids: Sequence[str],
        asserting: bool,
        replayed: str | None,
    ) -> bool:
        partition = self.keys.partition(tenant)
        keys = [*names, self.keys.epoch(partition), self.keys.recovering(partition)]
        keys += [self.keys.unsettled(partition), self.keys.contained(names[0])]
        keys += [self.keys.replayed(partition)]
        flat = [part for field in fields.items() for part in field]
        epoch = f"empty:{self.node}:{secrets.token_hex(4)}"
        times = (storage_limits.RECOVERY_MS, storage_limits.LOST_SESSIONS_AFTER_MS)
        arguments = [storage_limits.ACCOUNT_IDLE_MS, epoch, *times, int(asserting)]
        arguments += [ANY if replayed is None else replayed, len(fields)]
        return int(await self._load(keys, [*arguments, *flat, *entry_ids])) >= 0

    async def is_recovering(self, tenant: str) -> bool:
        """Whether the tenant's partition recovers: nothing can be loaded."""
        return await self.is_warm(self.keys.recovering(self.keys.partition(tenant)))

    async def is_warm(self, key: str) -> bool:
        """Whether a counter is in Redis."""
        return bool(await self.ask(self.redis.exists(key)))

    async def credit(
        self, tenant: str, account_id: str, entry_id: str, micros: int, reason: str, now_ms: int
    ) -> bool:
        """Applies a ledger entry that Postgres has.

        False: the entry was applied before, or the loaded account contains it.
        """
        keys = [self.keys.account(tenant, account_id), self.keys.applied(tenant, account_id)]
        channel = self.keys.channel(tenant, account_id)
        remembered = (
            storage_limits.ENTRIES_REMEMBERED_MIN,
            storage_limits.SPENDS_REMEMBERED_MS,
            storage_limits.ACCOUNT_IDLE_MS,
        )
        answer = await self._credit(
            keys, [entry_id, micros, now_ms, self.publish, channel, reason, *remembered]
        )
        return bool(int(answer[0]))

    async def change_limit(
        self, tenant: str, user_id: str | None, limit_minutes: int | None, *, overage: bool
    ) -> None:
        """Changes a month's limit of a member; None: of the organisation itself."""
        key = self.keys.member(tenant, user_id) if user_id else self.keys.organization(tenant)
        limit = "" if limit_minutes is None else limit_minutes
        channel = self.keys.limits_channel(tenant)
        await self._limit([key], [limit, int(overage), self.publish, channel])

    async def tell_process(self, node: str, message: dict[str, Any]) -> bool:
        """Sends a message to a process; returns whether it listens."""
        channel, text = self.keys.streams_channel(node), orjson.dumps(message)
        return bool(await self.ask(self.redis.execute_command(self.publish, channel, text)))  # type: ignore[no-untyped-call]

    async def tell(self, tenant: str, account_id: str, message: dict[str, Any]) -> None:
        """Sends a message to every process that serves an account."""
        channel = self.keys.channel(tenant, account_id)
        await self.ask(self.redis.execute_command(self.publish, channel, orjson.dumps(message)))  # type: ignore[no-untyped-call]
