"""Histories of calls whose real web process a seed kills.

The fake's time lies in the past, so calls of minutes pass within a second, and every event is late.
The facts that wait, and the sweeps, are made due at once: no test waits for them.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from server.calls.billing import session_id_of
from server.calls.replay import replay
from storage.postgres.calls import CallRecords
from tests.calls import fake_stream
from tests.calls.fake_calls import FakePresence, FakeRun, SentWebhook
from tests.calls.fake_stream import FakeStream
from tests.calls.site import ProviderSite, served
from tests.faults.processes import Installation, SpawnedProcess, eventually

CREDIT = 1_000_000
TOLERANCE_MS = 2_000
LOOK_S = 0.1
DAY_MS = 86_400_000
SPAN_MS = 300_000
"""How long ago the calls begin; they end before now."""
USERS = ("visitor-ann", "visitor-bob", "visitor-cy")
POOR = "visitor-cy"
"""Has credits for a minute: calls reach the limit."""
CALLS = 6
LOST, REPEATED = 0.1, 0.1
RATES = f"""
[kinds.call]
credits_per_minute = "1"
increment_seconds = [1, 1]
clock = "provider"
tolerance_seconds = {TOLERANCE_MS // 1000}
stop_grace_seconds = 1
enforce = "participant"
"""
RECORD = (
    "SELECT * FROM provider_durations ORDER BY session_id",
    "SELECT * FROM credit_ledger ORDER BY position",
    "SELECT * FROM usage_tracking ORDER BY session_id, minute",
    "SELECT * FROM sessions ORDER BY session_id",
)
RESTLESS = (
    "SELECT * FROM call_facts WHERE state = 'waiting'",
    "SELECT * FROM call_sessions WHERE sweep_at IS NOT NULL",
    """
    SELECT
        person.*, clocks.reason, known.state, known.reason AS ended_as,
        (SELECT json_agg(fact.*) FROM call_facts AS fact
         WHERE fact.call_session = person.call_session) AS facts
    FROM call_participants AS person
    LEFT JOIN provider_durations AS clocks USING (tenant, session_id)
    LEFT JOIN sessions AS known USING (tenant, session_id)
    -- Who cannot pay from the beginning may have no session.
    WHERE coalesce(clocks.elapsed_ms, 1) > 0 AND known.state IS DISTINCT FROM 'ended'
    """,
)
DUE = (
    "UPDATE call_facts SET due_at = now() WHERE state = 'waiting'",
    "UPDATE call_sessions SET sweep_at = now() WHERE sweep_at > now()",
)


class WebProcesses:
    """The web processes: one serves, another stands by or is starting."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.kills = 0
        self._serving: list[tuple[SpawnedProcess, int]] = []
        self._starting: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Starts two processes."""
        await asyncio.gather(self._serve(), self._serve())

    async def _serve(self) -> None:
        made = Installation(self.installation.data_dir)
        made.environment = {**self.installation.environment, "TAXIMETER_PORT": str(made.port)}
        made.processes = self.installation.processes
        self._serving.append((await made.serve("web"), made.port))

    async def url(self) -> str:
        """Where a process serves, or will when it is started."""
        if not self._serving and self._starting is not None:
            await self._starting
        return f"http://127.0.0.1:{self._serving[0][1]}"

    async def kill(self) -> None:
        """Kills the process that serves, and begins to start another."""
        await self.started()
        process, _ = self._serving.pop(0)
        await process.kill()
        self.kills += 1
        self._starting = asyncio.create_task(self._serve())

    async def started(self) -> None:
        """Waits until two processes serve."""
        if self._starting is not None:
            await self._starting


class KilledHistory:
    """One history: calls by chance, and web processes that are killed meanwhile."""

    def __init__(
        self, seed: int, web: WebProcesses, site: ProviderSite, record: Any, database: str
    ) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.web = web
        self.site = site
        assert isinstance(site.fake, FakeStream)
        self.fake = site.fake
        self.record = record
        self.database = database
        self.heard: set[str] = set()
        """Runs of which an event has arrived; others stay unknown."""
        self.calls = [f"default:h{seed}-{number}" for number in range(CALLS)]

    @property
    def runs(self) -> list[FakeRun]:
        """The runs of this history."""
        return [run for run in self.fake.runs if run.call in self.calls]

    # --- What happens ----------------------------------------------------------------------

    async def play(self) -> None:
        """Lets the calls happen, with the deaths, until everything is settled."""
        timetable = self._timetable()
        death = self.random.randrange(1, len(timetable))
        first = int(time.time() * 1000) - SPAN_MS
        for number, (at_ms, work) in enumerate(timetable):
            self.fake.now_ms = first + at_ms
            work()
            sent = [one for one in self.fake.take() if not self._is_lost(one)]
            if number == death:
                await self._kill_during(sent)
            else:
                await self._deliver(sent)
        self.fake.now_ms = int(time.time() * 1000)
        await self._make_due()
        await self._kill_during([])  # among the sweeps and the ends
        await self.settled()

    def _timetable(self) -> list[tuple[int, Callable[[], None]]]:
        """What happens at the provider, by the time since the beginning."""
        table: list[tuple[int, Callable[[], None]]] = []
        for call in self.calls:
            begin = self.random.randrange(60_000)
            end = begin + self.random.randrange(60_000, SPAN_MS - 61_000)
            made: list[FakeRun] = []
            table.append((begin, partial(self._start, call, made)))
            for user in self.random.sample(USERS, 2):
                for _ in range(self.random.randint(1, 2)):
                    comes, goes = sorted(self.random.sample(range(begin + 1, end), 2))
                    table += self._stay(made, user, comes, goes)
            table.append((end, partial(self._end, made)))
        return sorted(table, key=lambda one: one[0])

    def _start(self, call: str, made: list[FakeRun]) -> None:
        made.append(self.fake.start(call))

    def _end(self, made: list[FakeRun]) -> None:
        self.fake.end(made[0])

    def _stay(
        self, made: list[FakeRun], user: str, comes: int, goes: int
    ) -> list[tuple[int, Callable[[], None]]]:
        found: list[FakePresence] = []

        def go() -> None:
            if found[0].to_ms is None:
                self.fake.leave(made[0], found[0])

        return [(comes, lambda: found.append(self.fake.join(made[0], user))), (goes, go)]

    def _is_lost(self, sent: SentWebhook) -> bool:
        session = next(run.session for run in self.runs if run.session.encode() in sent.body)
        if session in self.heard and self.random.random() < LOST:
            return True
        self.heard.add(session)
        return False

    async def _deliver(self, sent: list[SentWebhook]) -> None:
        """Sends events in any order, each again until it is taken."""
        copies = [one for one in sent for _ in range(1 + (self.random.random() < REPEATED))]
        self.random.shuffle(copies)
        await asyncio.gather(*(self._send(one) for one in copies))

    async def _send(self, sent: SentWebhook) -> None:
        async def taken() -> bool:
            url = await self.web.url()
            with suppress(httpx.TransportError):
                async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                    answer = await client.post(sent.path, headers=sent.headers, content=sent.body)
                assert answer.status_code in (200, 503), answer.text
                return answer.status_code == 200
            return False

        await eventually(taken)

    async def _kill_during(self, sent: list[SentWebhook]) -> None:
        """Kills the web process at its work; another takes over."""
        point = self.random.choice(("now", "asked", "kept", "session", "clocks"))
        asked = len(self.site.asked)
        before = await self._counted()

        async def reached() -> bool:
            if point == "asked":  # it waits for the provider's answer
                return len(self.site.asked) > asked
            return point == "now" or (await self._counted())[point] > before[point]

        sending = asyncio.create_task(self._deliver(sent))
        with suppress(TimeoutError):
            # Where nothing more happens, it is killed at rest.
            async with asyncio.timeout(self.random.choice((0.05, 0.4))):
                await eventually(reached)
        await self.web.kill()
        await sending
        await self._make_due()

    async def _counted(self) -> dict[str, int]:
        """How much of each the record has."""
        row = await self.record.fetchrow(
            "SELECT (SELECT count(*) FROM call_facts) AS kept,"
            " (SELECT count(*) FROM sessions) AS session,"
            " (SELECT coalesce(sum(version), 0) FROM provider_durations)::bigint AS clocks"
        )
        return dict(row)

    async def _make_due(self) -> None:
        for statement in DUE:
            await self.record.execute(statement)

    async def settled(self) -> None:
        """Waits until everything is applied, swept, ended and recorded."""

        async def at_rest() -> bool:
            self.fake.now_ms = int(time.time() * 1000)
            with suppress(TimeoutError):
                # What failed while a process was dead would wait for long.
                async with asyncio.timeout(1):
                    await eventually(is_done)
                return True
            await self._make_due()
            return False

        async def is_done() -> bool:
            return not any([await self.record.fetch(query) for query in RESTLESS])

        try:
            await eventually(at_rest)
        except TimeoutError:
            rows = [await self.record.fetch(query) for query in RESTLESS]
            raise AssertionError(self.seed, rows) from None

    # --- What must be ------------------------------------------------------------------------

    async def check(self) -> None:
        """Checks each bill against the true call, and each difference."""
        for run in self.runs:
            for user in USERS:
                await self._check_bill(run, user)
        for user in USERS:
            balance, entries = await self.record.fetchrow(
                "SELECT balance_micros, (SELECT sum(amount_micros)::bigint FROM credit_ledger"
                " WHERE tenant = $1) FROM credit_accounts WHERE tenant = $1",
                f"user:{user}",
            )
            assert 0 <= balance == entries, (self.seed, user, balance, entries)

    async def _check_bill(self, run: FakeRun, user: str) -> None:
        name = session_id_of("stream", run.session, user)
        clocks = await self.record.fetchrow(
            "SELECT * FROM provider_durations WHERE session_id = $1", name
        )
        rows = await self.record.fetch(
            "SELECT entry_id, amount_micros FROM credit_ledger"
            " WHERE session_id = $1 OR starts_with(entry_id, $2)",
            name,
            f"clock:{name}:",
        )
        micros = -sum(row["amount_micros"] for row in rows)
        stays = sum(one.user == user for one in run.presences)
        where = (self.seed, run, user, micros, clocks, rows)
        if not stays:
            assert (clocks, micros) == (None, 0), where
            return
        off_ms = TOLERANCE_MS + 1_000 * (stays + 1)
        true_ms = run.true_ms(user)
        assert micros <= CREDIT * (true_ms + off_ms) // 60_000, where
        lacks = micros < CREDIT * (true_ms - off_ms) // 60_000
        is_kept = clocks["reason"] in ("limit", "not_started") or clocks["uncollected_ms"]
        assert not lacks or (user == POOR and is_kept), where
        corrections = json.loads(clocks["corrections"])
        entries = {row["entry_id"]: -row["amount_micros"] for row in rows}
        assert all(one["is_done"] for one in corrections), where
        named = {one["entry_id"]: one["credits_micros"] for one in corrections}
        made = {entry: sum_ for entry, sum_ in entries.items() if entry.startswith("clock:")}
        assert made == {entry: sum_ for entry, sum_ in named.items() if sum_}, where
        differs = abs(clocks["provider_ms"] - clocks["elapsed_ms"]) > TOLERANCE_MS
        assert not differs or corrections or is_kept, where

    async def replay(self) -> None:
        """Applies every fact again: the bills stay."""
        before = await self._record()
        now_ms = int(time.time() * 1000)
        records = await CallRecords.connect(self.database)
        try:
            span = now_ms - DAY_MS, now_ms
            done = await replay(records, span, now_ms, lambda: asyncio.sleep(LOOK_S))
        finally:
            await records.close()
        assert done.facts > 0
        assert not done.changed, (self.seed, done)
        assert not done.waiting, (self.seed, done)
        assert await self._record() == before, self.seed

    async def _record(self) -> list[Any]:
        return [[tuple(row) for row in await self.record.fetch(query)] for query in RECORD]


@asynccontextmanager
async def killed_histories(
    directory: Path, redis_url: str, database: str
) -> AsyncIterator[Callable[[int], KilledHistory]]:
    """Processes, a flusher and a provider for histories, one after the other."""
    installation = Installation(directory, RATES)
    record = await asyncpg.connect(database)
    with served(FakeStream(0)) as site:
        installation.environment |= {
            "TAXIMETER_REDIS_URL": redis_url,
            "TAXIMETER_DATABASE_URL": database,
            "TAXIMETER_STREAM_API_KEY": fake_stream.API_KEY,
            "TAXIMETER_STREAM_SECRET_KEY": fake_stream.SECRET,
            "TAXIMETER_STREAM_API_URL": site.url,
        }
        web = WebProcesses(installation)
        try:
            await asyncio.gather(web.begin(), installation.start("flush"))
            installation.port = int((await web.url()).rpartition(":")[2])
            for user in USERS:
                await installation.visitor(user, "1" if user == POOR else "100")
            yield lambda seed: KilledHistory(seed, web, site, record, database)
            await web.started()
        finally:
            await installation.close_processes()
            await record.close()
