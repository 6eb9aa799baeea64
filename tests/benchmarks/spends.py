"""Measures a spend beside its least cost: a Redis step, a row.

Everything runs in this one process, over the same two pools, in turns; only requests over HTTP go
to a server process. A spend is charged as an operation of the rate card, each client on its own
account, while a flusher moves the same records.
"""

import asyncio
import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import orjson

from protocol.metering.records import EntryPosted
from server.credits.outcomes import Spent
from server.process import Process
from server.runtime.rate_card_file import load_rate_card
from storage.postgres import columns
from storage.postgres.records import Records
from storage.redis.scripts import Script
from storage.redis.spending import AccountName
from tests.benchmarks import machine
from tests.benchmarks.environment import API_KEY, Environment, open_environment

CREDITS = "1000000"
PARTS = ("what the record knows", "the step in Redis", "writing it down")
"""The parts of a spend, in this order."""

Work = Callable[[str], Awaitable[None]]
"""Does the work once, for one user."""


_INSERT = """
INSERT INTO bench_ledger (
    tenant, account_id, entry_id, entry_kind, amount_micros, created_at, reason,
    operation, session_id, minute, metadata
)
SELECT
    tenant, account_id, entry_id, entry_kind, amount_micros, instant(at_ms), reason,
    operation, session_id, minute, metadata::jsonb
FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[],
    $7::text[], $8::text[], $9::text[], $10::integer[], $11::text[]
) AS record (
    tenant, account_id, entry_id, entry_kind, amount_micros, at_ms,
    reason, operation, session_id, minute, metadata
)
ON CONFLICT (tenant, account_id, entry_id) DO NOTHING
"""


class BareRecords(Records):
    """The record, with a bare insert.

    The statement that writes entries runs on a table that is like the ledger but without its
    triggers.
    """

    async def insert(self, entry: EntryPosted) -> None:
        """Writes one entry, without any other work."""
        arguments = columns.turned([columns.entry_row(entry)], columns.ENTRY_WIDTH)
        await self._run(lambda connection: connection.execute(_INSERT, *arguments))


@dataclass
class SpendScore:
    """The duration of each call of one work, and the total time."""

    name: str
    concurrency: int
    latencies_s: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def percentile_ms(self, share: float) -> float:
        """The time within which ``share`` of the calls were answered."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000

    @property
    def rate(self) -> float:
        """Calls a second."""
        return len(self.latencies_s) / self.seconds


class Contest:
    """The works that take turns, all on one environment."""

    def __init__(
        self, environment: Environment, process: Process, records: BareRecords, port: int
    ) -> None:
        self.environment = environment
        self.process = process
        self.records = records
        self.port = port
        self.trivial = Script(process.redis, "trivial", "return 1")
        self.parts_s: dict[str, float] = defaultdict(float)
        self.spent = 0
        self._numbers = itertools.count()
        self._idle: list[Requester] = []
        self._watch_parts()

    @property
    def works(self) -> dict[str, Work]:
        """All measured works, by their names. The third is the yardstick."""
        return {
            "Redis EVALSHA, bare": self._evalsha,
            "Postgres insert, bare": self._insert,
            "both, one after the other": self._both,
            "spend, below HTTP": self._spend,
            "GET /healthz": self._healthz,
            "spend, through HTTP": self._spend_over_http,
        }

    def _watch_parts(self) -> None:
        """Measures the time of each part of a spend."""
        ledger = self.process.ledger
        for part, name in zip(PARTS, ("before", "decide", "write"), strict=True):
            setattr(ledger, name, self._timed(part, getattr(ledger, name)))

    def _timed(self, part: str, call: Callable[..., Awaitable[Any]]) -> Any:
        async def timed(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return await call(*arguments)
            finally:
                self.parts_s[part] += time.perf_counter() - began

        return timed

    # --- The works ---------------------------------------------------------------------

    async def _evalsha(self, _: str) -> None:
        assert await self.trivial(["{p0}:bench"], ["x"]) == 1

    async def _insert(self, user: str) -> None:
        await self.records.insert(
            EntryPosted(
                tenant=f"user:{user}",
                account_id=user,
                entry_id=f"bench:{next(self._numbers)}",
                entry_kind="spend",
                amount_micros=-1,
                at=self.process.clock.now(),
                operation="chat_refinement",
            )
        )

    async def _both(self, user: str) -> None:
        await self._evalsha(user)
        await self._insert(user)

    async def _spend(self, user: str) -> None:
        began = time.perf_counter()
        answer = await self.process.ledger.spend(
            AccountName(f"user:{user}", user),
            entry_id=f"spend:{next(self._numbers)}",
            micros=1,
            operation="chat_refinement",
            user_id=user,
        )
        assert isinstance(answer, Spent), answer
        self.parts_s["all"] += time.perf_counter() - began
        self.spent += 1

    async def _healthz(self, _: str) -> None:
        status, answer = await self._request(b"GET /healthz HTTP/1.1\r\nHost: bench\r\n\r\n")
        assert status == 200, answer

    async def _spend_over_http(self, user: str) -> None:
        body = orjson.dumps({"operation": "chat_refinement"})
        status, answer = await self._request(
            b"POST /v1/accounts/%b/spend HTTP/1.1\r\nHost: bench\r\n"
            b"Authorization: Bearer %b\r\nContent-Type: application/json\r\n"
            b"Idempotency-Key: %d\r\nContent-Length: %d\r\n\r\n%b"
            % (user.encode(), API_KEY.encode(), next(self._numbers), len(body), body)
        )
        assert status in (200, 201), answer

    async def _request(self, request: bytes) -> tuple[int, bytes]:
        requester = self._idle.pop() if self._idle else await Requester.connect(self.port)
        answer = await requester.ask(request)
        self._idle.append(requester)
        return answer

    # --- Turns -----------------------------------------------------------------------

    async def turn(self, work: Work, seconds: float, score: SpendScore) -> None:
        """Does a work for ``seconds``, with all spenders concurrently."""
        began = time.perf_counter()

        async def spender(user: str) -> None:
            while (asked := time.perf_counter()) - began < seconds:
                await work(user)
                score.latencies_s.append(time.perf_counter() - asked)

        await asyncio.gather(*(spender(user) for user in users(score.concurrency)))
        score.seconds += time.perf_counter() - began

    async def run(self, concurrency: int, seconds: float, rounds: int) -> list[SpendScore]:
        """Runs all works in turns, for ``rounds`` rounds."""
        scores = [SpendScore(name, concurrency) for name in self.works]
        for work in self.works.values():
            for user in users(concurrency):
                await work(user)
        self.parts_s.clear()
        self.spent = 0
        for first in range(rounds):
            for place in range(len(scores)):
                score = scores[(first + place) % len(scores)]
                await self.turn(self.works[score.name], seconds / rounds, score)
        return scores

    def report_parts(self) -> str:
        """The average time of each part of a spend."""
        assert self.spent
        rest_s = self.parts_s["all"] - sum(self.parts_s[part] for part in PARTS)
        shown = [*((part, self.parts_s[part]) for part in PARTS), ("the rest, in Python", rest_s)]
        return "\n".join(
            f"  {part:<24}{seconds / self.spent * 1000:>8.3f} ms"
            f"{seconds / self.parts_s['all']:>7.0%}"
            for part, seconds in shown
        )


class Requester:
    """A connection that carries one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, port: int) -> "Requester":
        """Connects to a server process."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Sends a request; returns status and body of the answer."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        (length,) = (int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        return int(lines[0].split()[1]), await self._reader.readexactly(length)


def users(count: int) -> list[str]:
    """The users of this many spenders, each with an account."""
    return [f"customer-{number}" for number in range(count)]


async def compare(concurrencies: Sequence[int], seconds: float, rounds: int) -> list[str]:
    """Measures all works at each concurrency; returns the report's lines."""
    lines = [machine.describe(), _HEAD]
    async with open_environment() as environment:
        await environment.grant(users(max(concurrencies)), CREDITS)
        served = await environment.serve()
        flusher = await environment.start("flush")
        assert environment.settings.database_url is not None
        connection = await asyncpg.connect(environment.settings.database_url)
        await connection.execute("CREATE TABLE bench_ledger (LIKE credit_ledger INCLUDING ALL)")
        await connection.close()
        records = await BareRecords.connect(environment.settings.database_url)
        process = Process(environment.settings, load_rate_card(environment.settings.rates), records)
        await process.start()
        try:
            contest = Contest(environment, process, records, served.port)
            for concurrency in concurrencies:
                scores = await contest.run(concurrency, seconds, rounds)
                lines += [_row(score, scores[2]) for score in scores]
                lines += ["  of the spend below HTTP:", contest.report_parts()]
        finally:
            await process.stop()
            await records.close()
        served.check()
        flusher.check()
        await served.stop()
        await flusher.stop()
        lines += ["audit: " + line for line in (await environment.audit())[-1:]]
    return lines


_HEAD = (
    f"{'':<26}{'at once':>8}{'p50 ms':>9}{'p99 ms':>9}{'a second':>10}{'p50 ratio':>11}{'rate':>7}"
)


def _row(score: SpendScore, yardstick: SpendScore) -> str:
    p50_ms = statistics.median(score.latencies_s) * 1000
    return (
        f"{score.name:<26}{score.concurrency:>8}{p50_ms:>9.2f}{score.percentile_ms(0.99):>9.2f}"
        f"{score.rate:>10,.0f}{p50_ms / yardstick.percentile_ms(0.5):>11.2f}"
        f"{score.rate / yardstick.rate:>7.2f}"
    )
