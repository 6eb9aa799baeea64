"""The record of calls: the inbox of facts, runs, participants, and plans.

The statements are ``storage/postgres/sql/*.sql``. Instants are epoch milliseconds.
"""

from collections.abc import Sequence

import msgspec

from storage import limits as storage_limits
from storage.postgres import columns
from storage.postgres.database import SQL, Connection, Database
from storage.rows.calls import (
    CallContext,
    CallFilter,
    CallRunRow,
    FactRow,
    FactToKeep,
    FailedFact,
    ParticipantRow,
    PlanRow,
    SweepDue,
    UserRun,
    WaitingFact,
)


class CallBill(msgspec.Struct, frozen=True):
    """What one session of a call costs, as far as Postgres knows."""

    tenant: str
    session_id: str
    state: str
    elapsed_ms: int
    charged_micros: int
    minutes: int


class Replayed(msgspec.Struct, frozen=True):
    """One batch of a replay."""

    facts: int
    last: int
    """The position of the last one."""


class CallRecords(Database):
    """The queries about calls.

    Make one with ``over``: the pool remains the record's.
    """

    @classmethod
    def over(cls, database: Database) -> "CallRecords":
        """Returns the queries over ``database``'s pool, which it also closes."""
        return cls(database._pool, database._timeout_s)

    # The inbox

    async def receive(
        self,
        facts: Sequence[FactToKeep],
        *,
        received_at: int,
        due_at: int,
        sweep_at: int | None,
        soon_at: int | None,
    ) -> tuple[WaitingFact, ...]:
        """Keeps facts; returns those that are new, in order.

        Facts with a known key change nothing. The caller applies the new ones until ``due_at``;
        after that any process may. ``sweep_at``: when their runs are swept, ``soon_at`` where a
        fact wants it. The call may be repeated.
        """
        rows = [
            (
                fact.provider, fact.fact_key, fact.call_id, fact.call_session, fact.participant,
                fact.fact, fact.happened_at, fact.edge, fact.rest_name, fact.custom,
                fact.wants_sweep, fact.body,
            )
            for fact in facts
        ]  # fmt: skip
        arguments = (*columns.turned(rows, 12), received_at, due_at, sweep_at, soon_at)
        return await self._rows("receive_facts", WaitingFact, *arguments)

    async def take_facts(self, now_ms: int, due_at: int, limit: int) -> tuple[WaitingFact, ...]:
        """Takes over facts that were not applied in time, oldest first."""
        return await self._rows("take_facts", WaitingFact, now_ms, due_at, limit)

    async def fact_applied(self, provider: str, fact_key: str, now_ms: int) -> None:
        """Marks a fact as applied."""
        await self._execute("fact_applied", provider, fact_key, now_ms)

    async def park_fact(
        self, waiting: WaitingFact, participant: str, because: str, version: int
    ) -> bool:
        """Parks a fact; returns whether it is parked.

        It is not where a plan newer than ``version`` was put meanwhile.
        """
        name = (waiting.provider, waiting.fact_key, waiting.call_id)

        async def park(connection: Connection) -> bool:
            async with connection.transaction():
                await connection.execute(SQL["lock_call"], waiting.provider, waiting.call_id)
                parked = await connection.fetchval(
                    SQL["park_fact"], *name, participant, because, version
                )
                return bool(parked)

        return await self._run(park)

    async def fail_fact(self, waiting: WaitingFact, error: str) -> bool:
        """Parks a fact that fails each time; returns whether it is parked.

        It is not where another process has taken it over.
        """
        asked = (waiting.provider, waiting.fact_key, waiting.attempts, error)
        return bool(await self._value("fail_fact", *asked))

    async def failed_facts(
        self, runs: Sequence[tuple[str, str]], most: int
    ) -> tuple[FailedFact, ...]:
        """Returns facts of runs (provider, run) that failed each time, oldest first.

        At most ``most`` of each run.
        """
        return await self._rows("failed_facts", FailedFact, *columns.turned(list(runs), 2), most)

    async def retry_facts(self, provider: str, call_id: str, now_ms: int) -> int:
        """Lets the parked facts of a call wait again; returns how many."""
        return int(await self._value("retry_facts", provider, call_id, now_ms))

    async def prune_facts(self, before_at: int, limit: int) -> int:
        """Deletes applied facts from before an instant; returns how many."""
        return int((await self._execute("prune_facts", before_at, limit)).split()[-1])

    async def replay_facts(
        self, from_at: int, to_at: int, after: int, now_ms: int, limit: int
    ) -> Replayed:
        """Lets a batch of applied facts of a span be applied again.

        ``after``: the position of the last one of the batch before.
        """
        return await self._one("replay_facts", Replayed, from_at, to_at, after, limit, now_ms)

    async def facts_waiting(self, from_at: int, to_at: int) -> int:
        """Returns how many facts of a span wait to be applied."""
        return int(await self._value("facts_waiting", from_at, to_at))

    async def facts_of(
        self,
        provider: str,
        call_session: str,
        most: int = storage_limits.CALL_FACTS_READ_MAX,
        participant: str | None = None,
    ) -> tuple[FactRow, ...]:
        """Returns a run's or participant's newest facts, in order of arrival."""
        return await self._rows(
            "facts_of_session", FactRow, provider, call_session, most, participant
        )

    async def last_facts(self, provider: str, call_session: str) -> tuple[FactRow, ...]:
        """Returns the last facts of a run and of its devices.

        In order of arrival.
        """
        most = storage_limits.CALL_DEVICES_READ_MAX
        return await self._rows("last_facts", FactRow, provider, call_session, most)

    async def bills(
        self, from_at: int, to_at: int, after: tuple[str, str], limit: int
    ) -> tuple[CallBill, ...]:
        """Returns a page of bills of runs with facts of a span.

        By tenant and session.
        """
        return await self._rows("call_bills", CallBill, from_at, to_at, *after, limit)

    # Whose call it is

    async def context(
        self, provider: str, call_id: str, call_session: str, participant: str | None
    ) -> CallContext:
        """Returns what decides whose a fact is."""
        return await self._one(
            "call_context", CallContext, provider, call_id, call_session, participant
        )

    async def map_participant(
        self,
        name: tuple[str, str, str],
        *,
        call_id: str,
        tenant: str,
        session_id: str,
        user_id: str,
        org_id: str | None,
        mapping: str,
    ) -> ParticipantRow:
        """Maps a participant (provider, run, participant); returns the mapping that counts.

        The first mapping counts.
        """

        async def map_once(connection: Connection) -> str:
            async with connection.transaction():
                await connection.execute(SQL["lock_call"], name[0], call_id)
                asked = (*name, tenant, session_id, user_id, org_id, mapping)
                return str(await connection.fetchval(SQL["map_participant"], *asked))

        return msgspec.json.decode(await self._run(map_once), type=ParticipantRow)

    async def participants(
        self,
        runs: Sequence[tuple[str, str]],
        after: str = "",
        most: int = storage_limits.CALL_PARTICIPANTS_READ_MAX,
    ) -> tuple[ParticipantRow, ...]:
        """Returns participants of runs (provider, run), in order of their names.

        At most ``most`` of each run; of one run, those after a participant.
        """
        asked = columns.turned(list(runs), 2)
        return await self._rows("call_participants", ParticipantRow, *asked, most, after)

    async def put_plan(self, provider: str, call_id: str, plan: str, now_ms: int) -> int:
        """Keeps what a backend says about a call; returns the plan's version.

        Parked facts of the call wait again: let them be applied. The same plan again changes
        nothing, but is another chance for what is parked.
        """

        async def put(connection: Connection) -> int:
            async with connection.transaction():
                await connection.execute(SQL["lock_call"], provider, call_id)
                asked = (provider, call_id, plan, now_ms)
                version = int(await connection.fetchval(SQL["put_call"], *asked))
                await connection.execute(SQL["retry_facts"], provider, call_id, now_ms)
                return version

        return await self._run(put)

    async def plans(self, call_id: str, provider: str | None) -> tuple[PlanRow, ...]:
        """Returns the plans of a call's id; provider None: of all."""
        return await self._rows("call_plans", PlanRow, call_id, provider)

    # Runs

    async def learn_custom(self, provider: str, call_session: str, custom: str) -> None:
        """Keeps a call's own data, which its events did not carry."""
        await self._execute("learn_custom", provider, call_session, custom)

    async def run(self, provider: str, call_session: str) -> CallRunRow | None:
        """Returns one run."""
        return await self._maybe("call_run", CallRunRow, provider, call_session)

    async def runs_of(
        self, call_id: str, provider: str | None, limit: int
    ) -> tuple[CallRunRow, ...]:
        """Returns the newest runs of a call's id; provider None: of all."""
        return await self._rows("call_runs", CallRunRow, call_id, provider, limit)

    async def page(
        self, wanted: CallFilter, before: tuple[int, str, str] | None, limit: int
    ) -> tuple[CallRunRow, ...]:
        """Returns a page of runs, newest first.

        ``before``: instant, provider and run of the last one of the page before.
        """
        filters = msgspec.structs.astuple(wanted)
        asked = (*filters, *(before or (None, None, None)), limit)
        return await self._rows("calls_page", CallRunRow, *asked)

    async def runs_of_user(
        self,
        tenant: str,
        user_id: str,
        limit: int,
        *,
        call_id: str | None = None,
        provider: str | None = None,
        going_on: bool = False,
    ) -> tuple[UserRun, ...]:
        """Returns the newest runs in which a user is mapped.

        ``going_on``: without those that have ended.
        """
        asked = (tenant, user_id, call_id, provider, going_on, limit)
        return await self._rows("runs_of_user", UserRun, *asked)

    async def take_sweeps(
        self, now_ms: int, due_at: int, providers: Sequence[str], limit: int
    ) -> tuple[SweepDue, ...]:
        """Takes runs that are due, to be swept until ``due_at``."""
        return await self._rows("take_sweeps", SweepDue, now_ms, due_at, list(providers), limit)

    async def swept(
        self, run: SweepDue, taken_until: int, next_at: int | None, swept_at: int | None
    ) -> None:
        """Notes a sweep, and when the next one is due (None: none).

        ``taken_until`` is that of ``take_sweeps``: news of the run since then count more.
        ``swept_at`` of None: the sweep failed.
        """
        name = (run.provider, run.call_session)
        await self._execute("swept", *name, taken_until, next_at, swept_at)

    async def seconds_of_day(
        self,
        tenant: str,
        user_id: str,
        kind: str,
        day: tuple[int, int],
        without: Sequence[str] = (),
    ) -> int:
        """Returns a user's recorded seconds of a kind between two instants.

        ``without`` are sessions that do not count.
        """
        asked = (tenant, user_id, kind, *day, list(without))
        return int(await self._value("call_seconds_of_day", *asked))
