"""Histories of several calls by chance, and what each bill must be."""

import gzip
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal

from protocol.metering.records import EntryPosted
from protocol.metering.terms import minutes_begun
from server.calls.billing import session_id_of
from tests.calls.call_auditor import CallAuditor
from tests.calls.fake_calls import FakeCalls, FakePresence, FakeRun, SentWebhook
from tests.calls.fake_livekit import FakeLiveKit
from tests.calls.fake_stream import FakeStream
from tests.calls.virtual_calls import TOLERANCE_MS, VirtualCalls
from tests.simulation.driver import Laboratory
from tests.simulation.virtual import START_AT, VirtualLoop, run
from tests.simulation.virtual_cluster import VirtualCluster
from tests.simulation.virtual_redis import ScriptChange

CREDIT = 1_000_000
USERS = ("ann", "bob", "cy")
ORG = "acme"
DATA: tuple[dict[str, str], ...] = (
    {}, {}, {}, {"kind": "class"}, {"org": ORG, "payer": "ann"}, {"org": ORG, "kind": "class"},
)  # fmt: skip
"""A call's own data, by which it is mapped."""
LOST = 0.1
"""Chance of an event to be lost: nothing ever sends it again."""
AUDITED_EVERY = 4
"""One history in this many is audited after every event."""
Engine = Literal["redis", "postgres"]
Name = tuple[str, str]
"""Run and user."""


class CallHistory:
    """Calls, users and devices by chance, and the deaths of processes."""

    def __init__(self, seed: int, lab: Laboratory, loop: VirtualLoop) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        loop.clock.now_ms = START_AT
        cluster = VirtualCluster(loop, lab.wire, lab.postgres)
        self.is_livekit = self.random.random() < 0.2
        fake: FakeCalls = FakeLiveKit(START_AT, seed)
        if not self.is_livekit:
            is_ns = self.random.random() < 0.5
            fake = FakeStream(
                START_AT, seed, instants="ns" if is_ns else "rfc3339", packed=seed % 2 == 0,
                page_rows=self.random.randint(1, 5),
            )  # fmt: skip
        self.fake = fake
        self.calls = VirtualCalls(cluster, fake, self.random)
        self.auditor = CallAuditor(self.calls) if seed % AUDITED_EVERY == 0 else None
        self.calls.lost = self._is_lost
        self.calls.late_ms = self._late_ms
        self.heard: Counter[str] = Counter()
        """Events of each run that were not lost."""
        self.left_unheard: set[Name] = set()
        """Users who left a room at LiveKit, and whose event was lost."""
        self.credits = {
            (tenant, user): self.random.choice((1_000, 1_000, 1_000, 2)) * CREDIT
            for user in USERS
            for tenant in (f"user:{user}", f"org:{ORG}")
        }
        """Granted micro-credits by account."""

    # --- What happens ----------------------------------------------------------------------

    async def play(self) -> None:
        """Lets the calls happen, with all their faults, until everything is settled."""
        await self._begin_with(2 if self.random.random() < 0.7 else 1)
        first, timetable = self.calls.now, self._timetable()
        restart_at: list[int] = []
        for at, work in timetable:
            await self.calls.advance(max(0, first + at - self.calls.now))
            work()
            if self.auditor is not None:
                self.auditor.audit()
            if self.random.random() < 0.12:
                self._strike()
            await self._serve_again(restart_at)
        for run_ in self.fake.runs:
            self.fake.now_ms = self.calls.now
            if run_.ended_ms is None:
                self.fake.end(run_)
        for _ in range(self.random.randrange(3)):
            # Also while the ends and the sweeps are worked on.
            self._strike()
            await self.calls.advance(self.random.choice((10, 4_000, 20_000)))
            await self._serve_again(restart_at)
        await self.heal()

    async def heal(self) -> None:
        """Ends all faults, and waits for the last record."""
        cluster = self.calls.cluster
        for host in cluster.hosts:
            host.line.mishaps.clear()
            host.postgres.mishaps.clear()
        if not cluster.nodes:
            await self.calls.serve()
        await self.calls.settled()
        if self.auditor is not None:
            self.auditor.audit()

    async def _begin_with(self, processes: int) -> None:
        """Processes, a flusher, and credits for everybody."""
        for _ in range(processes):
            await self.calls.serve()
        self.calls.flusher()
        host = self.calls.cluster.nodes[0]
        for (tenant, user), micros in self.credits.items():
            entry = EntryPosted(
                tenant=tenant, account_id=user, entry_id=f"grant-{user}",
                entry_kind="grant", amount_micros=micros, at=self.calls.now,
            )  # fmt: skip
            await self.calls.cluster.finished(host.act(host.ledger.enter(entry)))

    def _timetable(self) -> list[tuple[int, Callable[[], None]]]:
        """What happens at the provider, by the time since the beginning."""
        chance, fake = self.random, self.fake
        table: list[tuple[int, Callable[[], None]]] = []
        for number in range(chance.randint(1, 3)):
            begin = chance.randrange(60_000)
            end = begin + chance.randrange(20_000, 240_000)
            data, made = chance.choice(DATA), list[FakeRun]()

            def start(
                number: int = number, data: dict[str, str] = data, made: list[FakeRun] = made
            ) -> None:
                made.append(fake.start(f"default:call-{number}", **data))

            table.append((begin, start))
            for user in chance.sample(USERS, chance.randint(1, 3)):
                for _ in range(chance.randint(1, 3)):
                    comes, goes = sorted(chance.sample(range(begin, end), 2))
                    table += self._stay(made, user, comes, goes, chance.random() < 0.8)

            def finish(made: list[FakeRun] = made) -> None:
                if made[0].ended_ms is None:
                    fake.end(made[0])

            if chance.random() < 0.9:
                table.append((end, finish))
        return sorted(table, key=lambda one: one[0])

    def _stay(
        self, made: list[FakeRun], user: str, comes: int, goes: int, leaves: bool
    ) -> list[tuple[int, Callable[[], None]]]:
        found: list[FakePresence] = []

        def come() -> None:
            if made[0].ended_ms is None:
                found.append(self.fake.join(made[0], user))

        def go() -> None:
            if found and found[0].to_ms is None:
                self.fake.leave(made[0], found[0])

        return [(comes, come), (goes, go)] if leaves else [(comes, come)]

    def _strike(self) -> None:
        """Kills a process now, or between two of its next messages."""
        nodes = self.calls.cluster.nodes
        if not nodes:
            return
        host = self.random.choice(nodes)
        where: Engine = self.random.choice(("redis", "postgres"))
        if self.random.random() < 0.3:
            host.kill()
        else:
            after = self.random.random() < 0.5
            self.calls.kill_at(host, where, self.random.randrange(12), after=after)

    async def _serve_again(self, restart_at: list[int]) -> None:
        """A new process in place of dead ones, some seconds later."""
        if len(self.calls.cluster.nodes) < 1 and not restart_at:
            restart_at.append(self.calls.now + self.random.choice((0, 3_000, 15_000, 90_000)))
        if restart_at and (restart_at[0] <= self.calls.now):
            restart_at.clear()
            await self.calls.serve()

    def _is_lost(self, sent: SentWebhook) -> bool:
        """A tenth is lost.

        One event of each run arrives, because without one it would stay unknown.
        """
        session = self._session_of(sent)
        if self.random.random() < LOST and (self.heard[session] or self._more_to_come(session)):
            self._note_lost(session, sent)
            return True
        self.heard[session] += 1
        return False

    def _session_of(self, sent: SentWebhook) -> str:
        body = _unpacked(sent)
        return next(run_.session for run_ in self.fake.runs if run_.session.encode() in body)

    def _note_lost(self, session: str, sent: SentWebhook) -> None:
        event = json.loads(_unpacked(sent))
        if event.get("event") == "participant_left":
            self.left_unheard.add((session, event["participant"]["identity"]))

    def _more_to_come(self, session: str) -> bool:
        return next(one for one in self.fake.runs if one.session == session).ended_ms is None

    def _late_ms(self) -> list[int]:
        """Events come late, twice, and in any order."""
        copies = 2 if self.random.random() < 0.15 else 1
        return [self.random.choice((0, 5, 300, 2_000, 45_000)) for _ in range(copies)]

    # --- What must be ------------------------------------------------------------------------

    def bills(self) -> dict[Name, dict[str, Any]]:
        """Each session of the record: with its corrections, by run and user."""
        found: dict[Name, dict[str, Any]] = {}
        sessions = {row["session_id"]: row for row in self.calls.fetch("SELECT * FROM sessions")}
        clocks = {
            row["session_id"]: row for row in self.calls.fetch("SELECT * FROM provider_durations")
        }
        ledger = self.calls.fetch(
            "SELECT entry_id, amount_micros, session_id, entry_kind, metadata FROM credit_ledger"
        )
        for run_ in self.fake.runs:
            for user in USERS:
                name = session_id_of("livekit" if self.is_livekit else "stream", run_.session, user)
                burnt = -sum(
                    row["amount_micros"]
                    for row in ledger
                    if row["session_id"] == name and row["entry_kind"] == "burn"
                )
                corrected = {
                    row["entry_id"]: -row["amount_micros"]
                    for row in ledger
                    if row["entry_id"].startswith(f"clock:{name}:")
                }
                org, payer = run_.custom.get("org"), run_.custom.get("payer", user)
                found[run_.session, user] = {
                    "account": (f"org:{org}" if org else f"user:{user}", payer),
                    "session": sessions.get(name),
                    "clocks": clocks.get(name),
                    "burnt": burnt,
                    "corrected": corrected,
                    "micros": burnt + sum(corrected.values()),
                }
        return found

    def check(self) -> None:
        """Checks that bills are those of true calls, with their entries."""
        bills = self.bills()
        for (session, user), bill in bills.items():
            run_ = next(one for one in self.fake.runs if one.session == session)
            where = (self.seed, session, user, run_.true_ms(user), bill)
            stays = sum(one.user == user for one in run_.presences)
            most_ms = run_.true_ms(user)
            if (session, user) in self.left_unheard:
                # No later question can show when such a user left: up to the room's end counts.
                assert run_.ended_ms is not None
                most_ms = run_.ended_ms - run_.started_ms
            self._check_bill(bill, run_.true_ms(user), most_ms, stays, where)
            self._check_minutes(bill, run_, user, where)
            self._check_entries(bill, where)
        assert set(self.calls.answers) <= {0, 200, 503}, (self.seed, self.calls.answers)
        spent: defaultdict[Name, int] = defaultdict(int)
        for bill in bills.values():
            spent[bill["account"]] += bill["micros"]
        for account, micros in self.credits.items():
            (row,) = self.calls.fetch(
                "SELECT balance_micros FROM credit_accounts WHERE (tenant, account_id) = ($1, $2)",
                *account,
            )
            of_account = (self.seed, account, row, micros, spent[account])
            assert row["balance_micros"] == micros - spent[account], of_account
            # No two processes are cut off from each other here, so there is no debt, whatever died.
            assert row["balance_micros"] >= 0, of_account

    def _check_bill(
        self, bill: dict[str, Any], true_ms: int, most_ms: int, stays: int, where: Any
    ) -> None:
        """A bill is that of the true time, or says why not."""
        terms = self.calls.cluster.rates.terms("call")
        # Providers' figures are whole seconds for each stay.
        off_ms = TOLERANCE_MS + 1_000 * stays + terms.next_increment_ms
        low = terms.cost_micros(max(0, true_ms - off_ms), 0)
        high = terms.cost_micros(most_ms + off_ms, 0) if stays else 0
        clocks = bill["clocks"]
        assert bill["micros"] <= high, where
        if bill["micros"] < low and not self.is_livekit:  # which remembers nothing of what is lost
            assert self.credits[bill["account"]] < 100 * CREDIT, where
            assert clocks is not None, where
            is_limit = clocks["reason"] in ("limit", "not_started")
            lacked = clocks["uncollected_ms"] or clocks["uncollected_micros"]
            assert lacked or is_limit, where
        if bill["session"] is not None:
            assert bill["session"]["state"] == "ended", where
            assert clocks is not None, where

    def _check_minutes(self, bill: dict[str, Any], run_: FakeRun, user: str, where: Any) -> None:
        """Minutes count once, with those of the corrections."""
        row, counts = bill["session"], run_.custom.get("kind") == "class"
        if row is None or self.is_livekit or self.credits[bill["account"]] < 100 * CREDIT:
            return
        corrected = sum(one["minutes"] for one in json.loads(bill["clocks"]["corrections"]))
        assert counts or corrected == 0, where
        if counts:
            off_ms = TOLERANCE_MS + 1_000 * sum(one.user == user for one in run_.presences)
            true_ms, minutes = run_.true_ms(user), row["minutes"] + corrected
            low, high = minutes_begun(max(0, true_ms - off_ms)), minutes_begun(true_ms + off_ms)
            assert low <= minutes <= high, where

    def _check_entries(self, bill: dict[str, Any], where: Any) -> None:
        """A difference beyond the tolerance has an entry, and nothing else."""
        clocks = bill["clocks"]
        corrections = json.loads(clocks["corrections"]) if clocks is not None else []
        assert all(one["is_done"] for one in corrections), where
        named = {
            one["entry_id"]: one["credits_micros"] for one in corrections if one["credits_micros"]
        }
        assert named == bill["corrected"], where
        if clocks is None or clocks["provider_ms"] is None:
            return
        differs = abs(clocks["provider_ms"] - clocks["elapsed_ms"]) > TOLERANCE_MS
        is_kept = clocks["reason"] in ("limit", "not_started") or clocks["uncollected_ms"]
        assert not differs or corrections or is_kept, where

    async def replay(self) -> None:
        """Applies all facts once more, with a death; the bills stay."""
        before, calls = self._record(), self.calls
        host = calls.cluster.nodes[0]
        again = calls.calls(host).records.replay_facts(0, calls.now + 1, 0, calls.now, 500)
        found = await calls.cluster.finished(host.act(again))
        assert found.facts, self.seed
        await calls.advance(self.random.randrange(8_000))
        self._strike()
        await calls.advance(20_000)
        await self.heal()
        assert self._record() == before, self.seed

    def _record(self) -> Any:
        return [
            [tuple(row) for row in self.calls.fetch(query)]
            for query in (
                "SELECT * FROM provider_durations ORDER BY session_id",
                "SELECT * FROM credit_ledger ORDER BY position",
                "SELECT * FROM usage_tracking ORDER BY session_id, minute",
                "SELECT * FROM sessions ORDER BY session_id",
            )
        ]


def _unpacked(sent: SentWebhook) -> bytes:
    return gzip.decompress(sent.body) if sent.body[:2] == b"\x1f\x8b" else sent.body


def play_history(seed: int, lab: Laboratory, mutations: Sequence[ScriptChange] = ()) -> Any:
    """Plays a history, checks its bills, and replays it; returns the bills."""
    found: list[Any] = []

    async def main(loop: VirtualLoop) -> None:
        history = CallHistory(seed, lab, loop)
        try:
            await history.play()
            history.check()
            await history.replay()
            history.check()
            found.append({name: bill["micros"] for name, bill in history.bills().items()})
        finally:
            history.calls.cluster.stop()
            await history.calls.cluster.settle()

    with lab.emptied(mutations):
        run(main)
    return found[0]
