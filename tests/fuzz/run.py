"""One run with a server, honest users, an attack, and all checks."""

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any

import httpx
import jwt

from server import limits as server_limits
from storage import limits as storage_limits
from tests.faults.processes import Installation, SpawnedProcess, open_installation
from tests.fuzz import liars, slow
from tests.fuzz.attack import Attack, Tokens, numbered
from tests.fuzz.cases import ATTACKERS, HONEST_ORG, INSIDE_PATH, case_of
from tests.fuzz.checked_account import CHECKED_ACCOUNTS, CheckedAccount
from tests.fuzz.honest import RATES, Backend, Honest, address_of, cancelled, connect_honest

SECRET = "a-secret-of-the-fuzz-run-with-32-bytes"
API_KEY = "key-of-a-backend-in-the-fuzz-run"
WARM_UP = 0.5
"""Part of the cases that is sent before the first measurement of memory. After it caches, pools and
code that is loaded late have their final size."""
GROWTH_MAX = 0.05
STEPS_PER_CASES = 40
"""Cases for each step of a checked account."""
SETTLE_S = 60.0
"""Longest wait for the server to clear away what attackers left."""
CONNECTIONS_GROWN_MAX = (
    storage_limits.REDIS_CONNECTIONS_MAX + storage_limits.DATABASE_CONNECTIONS_MAX
)
"""Connections to Redis and Postgres are opened on demand, and kept."""
PROBLEMS_SHOWN = 20
DESCRIPTORS = 400
"""Descriptors that the server may open, including Redis, Postgres and its own files."""
FLOOD = 1_000
"""Connections that are opened at once and send nothing."""


@dataclass
class FuzzReport:
    """The result of a run."""

    seed: int
    cases: int
    seconds: float = 0.0
    answers: Counter[str] = field(default_factory=Counter)
    logged: Counter[str] = field(default_factory=Counter)
    """Log lines of the server below the level of errors, by level and event."""
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    """Steps of checked accounts."""
    ticks: int = 0
    longest_gap_s: float = 0.0
    cut_after_s: dict[str, float] = field(default_factory=dict)
    """How long the server kept peers that send too little or read nothing."""
    newcomer_s: float = 0.0
    """Time from the beginning of the flood until an honest user was served during the flood."""
    descriptors_max: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """Growth of the server's memory, as a fraction of its earlier size."""
        before = self.before["resident_bytes"]
        return (self.after["resident_bytes"] - before) / before

    def worst(self) -> list[tuple[str, int]]:
        """The most frequent problems, each once with its count, without memory addresses."""
        alike = Counter(re.sub(r"0x[0-9a-f]+", "0x", problem) for problem in self.problems)
        return alike.most_common(PROBLEMS_SHOWN)

    def lines(self) -> list[str]:
        """The lines of the report."""
        mebibytes = [found["resident_bytes"] / 2**20 for found in (self.before, self.after)]
        return [
            f"{self.cases} cases of seed {self.seed} in {self.seconds:.0f} s",
            "answers: " + ", ".join(f"{name} {n}" for name, n in self.answers.most_common()),
            f"log lines {self.logged.total()}: "
            + ", ".join(f"{name} {n}" for name, n in self.logged.most_common(12)),
            f"memory {mebibytes[0]:.1f} MiB after the warm-up, {mebibytes[1]:.1f} MiB after all "
            f"({self.growth:+.1%})",
            f"accounts: {self.steps} steps",
            f"honest sessions: {self.ticks} ticks, the longest wait for one "
            f"{self.longest_gap_s:.2f} s",
            "cut after: "
            + ", ".join(f"{what} {seconds:.1f} s" for what, seconds in self.cut_after_s.items()),
            f"in a flood of {FLOOD} connections an honest user was served after "
            f"{self.newcomer_s:.2f} s, with {self.descriptors_max} of {DESCRIPTORS} descriptors "
            "in use",
            *(f"PROBLEM ({times}) {problem}" for problem, times in self.worst()),
        ]


class Run:
    """The parts of a run."""

    def __init__(self, installation: Installation, seed: int, count: int) -> None:
        self.installation = installation
        self.report = FuzzReport(seed, count)
        self.attack = Attack(installation.port, Tokens(SECRET, API_KEY))
        self.http = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{installation.port}", timeout=30, trust_env=False
        )
        self.backend = Backend(f"http://127.0.0.1:{installation.port}", API_KEY)
        self.honest: list[Honest] = []
        self.reading: list[asyncio.Task[None]] = []
        self.checked_accounts = [
            CheckedAccount(installation.port, API_KEY, number, seed)
            for number in range(CHECKED_ACCOUNTS)
        ]

    # --- The honest users ------------------------------------------------------------------

    @staticmethod
    def _tenant(number: int) -> dict[str, str]:
        """The tenant of a user.

        Half of the honest users share the organisation of attackers.
        """
        return {"org": HONEST_ORG} if number % 2 else {}

    def _token(self, number: int) -> str:
        exp = int(time.time()) + 24 * 3600
        claims = {"sub": f"user-{number}", "exp": exp, **self._tenant(number)}
        return jwt.encode(claims, SECRET, algorithm="HS256")

    async def begin_honest(self) -> None:
        """Starts a session for each honest user, and lets the sessions run."""
        for number in range(0, ATTACKERS, 2):
            await self.backend.grant(f"mallory-{number}", {})
            await self.backend.grant(f"mallory-{number}", {"org": HONEST_ORG})
        for number in range(16):
            user_id = f"user-{number}"
            tenant = self._tenant(number)
            await self.backend.grant(user_id, tenant)
            client = await connect_honest(self.installation.port, number, self._token(number))
            kind = ("chat", "talk", "chat", "lesson")[number // 2 % 4]
            self.honest.append(Honest(number, kind, number >= 12, client))
        await asyncio.gather(*(honest.begin() for honest in self.honest))
        self.reading = [asyncio.ensure_future(honest.live()) for honest in self.honest]

    async def end_honest(self) -> None:
        """Stops the sessions, and compares the bills with the observations."""
        self.report.problems += await cancelled(self.reading)
        for honest in self.honest:
            receipt = await honest.end()
            left = await self.backend.left(f"user-{honest.number}", self._tenant(honest.number))
            honest.judge(receipt, Decimal(left))
            self.report.ticks += honest.ticks
            self.report.longest_gap_s = max(self.report.longest_gap_s, honest.longest_gap_s)
            self.report.problems += honest.problems
            await honest.client.close()

    # --- The attack ------------------------------------------------------------------------

    async def attack_all(self) -> None:
        """Sends every case; measures the server after warm-up and at the end."""
        seed, count = self.report.seed, self.report.cases
        warm_up = int(count * WARM_UP)
        make = partial(case_of, seed)
        at_rest = await self._inside()
        started_at = time.monotonic()
        await asyncio.gather(
            self.slow(),
            self.lie(1),
            self.spend(warm_up),
            self.attack.run(make, numbered(0, warm_up)),
        )
        # The heap keeps part of its largest size, so the warm-up includes the flood.
        await self.flood()
        self.report.before = await self._settled(at_rest)
        rest = numbered(warm_up, count - warm_up)
        await asyncio.gather(self.lie(2), self.spend(len(rest)), self.attack.run(make, rest))
        await self.flood()
        self.report.seconds = time.monotonic() - started_at
        self.report.after = await self._settled(at_rest)
        self.report.answers = self.attack.answers
        self.report.problems += self.attack.problems
        for checked_account in self.checked_accounts:
            self.report.steps += checked_account.steps
            self.report.problems += checked_account.problems

    async def spend(self, cases: int) -> None:
        """Sends amounts and bodies in every form to the checked accounts."""
        steps = cases // STEPS_PER_CASES
        await asyncio.gather(
            *(checked_account.run(steps) for checked_account in self.checked_accounts)
        )

    async def lie(self, part: int) -> None:
        """Runs the lying clients, while honest users must still be admitted."""
        port, get = self.installation.port, self.attack.tokens.get
        found = await asyncio.gather(
            *(liars.withhold(port, get("user", number), number) for number in range(4)),
            liars.start_many(port, get("user", 7 + part), part),
            *(self.guess(number) for number in range(4)),
        )
        self.report.problems += [problem for problems in found for problem in problems]

    async def guess(self, number: int) -> list[str]:
        """Guesses from an honest user's address, who must still be admitted."""
        address = address_of(number)
        problems = await liars.guess(self.installation.port, address)
        try:
            async with asyncio.timeout(SETTLE_S):
                client = await connect_honest(self.installation.port, number, self._token(number))
                await client.close()
            headers = {"X-Forwarded-For": address}
            for token in (API_KEY, self._token(number)):
                headers["Authorization"] = f"Bearer {token}"
                response = await self.http.get(
                    f"/v1/accounts/user-{number}", params=self._tenant(number), headers=headers
                )
                response.raise_for_status()
        except Exception as error:
            problems.append(f"an honest user is locked out of {address}: {error!r}")
        return problems

    async def flood(self) -> None:
        """Opens more connections than the server has descriptors for.

        During the flood an honest user connects, and must be served.
        """
        began = time.monotonic()
        opened = await asyncio.gather(
            *(asyncio.open_connection("127.0.0.1", self.installation.port) for _ in range(FLOOD)),
            return_exceptions=True,
        )
        client = await connect_honest(self.installation.port, 0, self._token(0))
        found = await self._inside()
        self.report.newcomer_s = time.monotonic() - began
        self.report.descriptors_max = found["descriptors"]
        await client.close()
        cut = 0
        for connection in opened:
            if isinstance(connection, BaseException):
                cut += 1
                continue
            reader, writer = connection
            cut += reader.at_eof() or reader.exception() is not None
            writer.close()
        if cut < FLOOD - DESCRIPTORS + server_limits.DESCRIPTORS_RESERVED:
            self.report.problems.append(f"of the flood only {cut} were cut")

    async def slow(self) -> None:
        """Runs slow or deaf peers; each must be cut in bounded time.

        They send too little or read nothing.
        """
        port, token = self.installation.port, self.attack.tokens.get("user", 1)
        *stayed, no_answer, no_tick = await asyncio.gather(
            *(slow.stay(port, sent) for sent in slow.STARTS * 4),
            slow.take_no_answer(port),
            slow.take_no_tick(port, token),
        )
        found = {
            "silent or slow": max(stayed),
            "took no answer": no_answer,
            "took no tick": no_tick,
        }
        self.report.cut_after_s = found
        for what, seconds in found.items():
            if seconds >= slow.CLOSE_BY_S:
                self.report.problems.append(f"who {what} is not cut")

    async def _inside(self, query: str = "") -> dict[str, int]:
        """The server's present counts.

        The connection of this request is closed after it.
        """
        response = await self.http.get(INSIDE_PATH + query, headers={"Connection": "close"})
        found: dict[str, int] = response.raise_for_status().json()
        return found

    async def _settled(self, expected: dict[str, int]) -> dict[str, int]:
        """Waits until the server's counts are as before; returns the counts.

        The wait is bounded.
        """

        async def settled() -> bool:
            found = await self._inside()
            return all(found[name] <= most(name, number) for name, number in expected.items())

        if not await _holds(settled, SETTLE_S):
            found = await self._inside()
            left = {name: (expected[name], found[name]) for name in expected}
            differing = {name: pair for name, pair in left.items() if pair[1] > most(name, pair[0])}
            self.report.problems.append(f"left behind (expected, found): {differing}")
        return await self._inside("?memory")

    # --- The checks --------------------------------------------------------------------------

    def judge(self, served: SpawnedProcess) -> None:
        """Checks the server's exit, its memory and its log."""
        problems = self.report.problems
        if served.child.returncode is not None:
            problems.append(f"the server ended with {served.child.returncode}")
        if self.report.growth > GROWTH_MAX:
            problems.append(f"the memory grew by {self.report.growth:.1%}")
        for line in served.errors.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                problems.append(f"not from the log: {line[:300]}")
                continue
            if entry["level"] in ("error", "critical") or "exception" in entry:
                what = str(entry.get("exception", entry))
                problems.append(f"logged {entry['event']}: ...{what[-600:]}")
            else:
                self.report.logged[f"{entry['level']} {str(entry['event'])[:40]}"] += 1


def most(name: str, number: int) -> int:
    """The largest allowed count after the attack, from the count before it."""
    return number + CONNECTIONS_GROWN_MAX if name == "descriptors" else number


async def _holds(condition: Callable[[], Awaitable[bool]], patience_s: float) -> bool:
    """Waits for a condition; returns whether it held in time."""
    until = time.monotonic() + patience_s
    while not await condition():
        if time.monotonic() > until:
            return False
        await asyncio.sleep(0.1)
    return True


async def fuzz(seed: int, count: int, say: Callable[[str], None] = lambda _: None) -> FuzzReport:
    """Runs ``count`` cases; calls ``say`` with the progress."""
    async with AsyncExitStack() as stack:
        installation = await stack.enter_async_context(open_installation(RATES))
        installation.environment |= {
            "TAXIMETER_JWT_SECRET": SECRET,
            "TAXIMETER_API_KEYS": API_KEY,
            "TAXIMETER_LOG_FORMAT": "json",
            "FUZZ_DESCRIPTORS": str(DESCRIPTORS),
        }
        installation.module = "tests.fuzz.served"
        served = await installation.serve()
        run = Run(installation, seed, count)
        stack.push_async_callback(run.http.aclose)
        stack.push_async_callback(run.backend.client.aclose)
        say("the honest begin")
        await run.begin_honest()
        say("the attack begins")
        await run.attack_all()
        say("the honest end")
        await run.end_honest()
        run.judge(served)
        say("the audit begins")
        run.report.problems += await _audited(installation)
        return run.report


async def _audited(installation: Installation) -> list[str]:
    """The findings of an operator's audit, once the outbox is empty."""
    installation.module = "server"

    async def written() -> bool:
        ready: Any = (await installation.http("GET", "/readyz")).json()
        return bool(ready["outbox"]["entries"] == 0)

    if not await _holds(written, SETTLE_S):
        return ["the outbox is not empty"]
    audit = await installation.run("audit")
    if audit.child.returncode == 0 and "everything adds up" in audit.output:
        return []
    return [f"the audit says: {audit.output} {audit.errors[-2_000:]}"]
