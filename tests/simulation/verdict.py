"""The verdict: checks Postgres at the end against what was seen.

Once all clients have gone, every session has ended and everything is flushed, Postgres is the
record, and Redis must agree with it. Redis may have lost records on their way to Postgres.
"""

import json
from collections import Counter, defaultdict
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from protocol.metering.terms import Terms
from tests.simulation.auditor import CLOCK_ERROR_MS, Auditor
from tests.simulation.clients import SessionLog, SimulatedClient
from tests.simulation.evidence import check_receipt
from tests.simulation.state import MINUTE_MS, State, cost_micros

UNNOTICED_MS = 10_000
"""By then processes have noticed a loss of Redis."""
SPARED_MS = 2_000
"""Largest difference between shown and billed time by a death and by clocks that differ."""


class Verdict:
    """Compares what Postgres has with everything else that is known."""

    def __init__(self, auditor: Auditor, state: State) -> None:
        self.auditor = auditor
        self.world = auditor.world
        self.money_client = auditor.money_client
        self.state = state
        fetch = self.world.cluster.postgres.fetch
        self.sessions = {
            f"{row['tenant']}/{row['session_id']}": dict(row)
            for row in fetch("SELECT * FROM sessions WHERE state <> 'prepared'")
        }
        self.minutes: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in fetch("SELECT * FROM usage_tracking ORDER BY session_id, minute"):
            self.minutes[f"{row['tenant']}/{row['session_id']}"].append(dict(row))
        self.ledger = [dict(row) for row in fetch("SELECT * FROM credit_ledger")]
        self.balances = {
            (row["tenant"], row["account_id"]): row["balance_micros"]
            for row in fetch("SELECT * FROM credit_accounts")
        }

    def give(self) -> None:
        """Raises ``AssertionError`` for whatever does not add up."""
        postgres = self.world.cluster.postgres
        findings = postgres.ask(postgres.records.audit)
        assert findings == (), findings
        rejected = [
            self.world.cluster.redis.ask("XLEN", f"{{p{partition}}}:rejected")
            for partition in range(2)
        ]
        poisons = self.world.poisons
        assert sum(rejected) == poisons or (self.world.losses and sum(rejected) <= poisons)
        self._check_flushers()
        if not self.auditor.is_blind:
            self._check_outboxes()
        self._check_sessions()
        self._check_prepared()
        self._check_transfers()
        self._check_accounts()
        self._check_months()
        self._check_free_time()
        self.auditor.operations.close(self.state)
        for session_log in self.world.session_logs.values():
            self._check_proofs(session_log)
            self._check_service(session_log)
        for client in self.world.clients:
            self._check_told(client)
            self._check_shown(client)

    def _check_flushers(self) -> None:
        """Flushers that were not interrupted have flushed as much as they report."""
        hosts = self.world.cluster.flushers
        if (
            self.world.was_away
            or self.world.cluster.was_away
            or not all(host.is_alive for host in hosts)
        ):
            return
        flushed = sum(host.flusher.flushed_records for host in hosts)
        assert flushed == self.auditor.records, (flushed, self.auditor.records)
        assert sum(host.flusher.rejected_entries for host in hosts) == self.world.poisons

    def _check_outboxes(self) -> None:
        """Every outbox is empty, and the watermarks are at its end."""
        for partition in range(2):
            outbox = f"{{p{partition}}}:outbox"
            (group,) = self.world.cluster.redis.ask("XINFO", "GROUPS", outbox)
            assert group[b"pending"] == 0, group
            last, mark = group[b"last-delivered-id"].decode(), self.state.watermarks
            assert last == "0-0" or mark[str(partition)] == last, (group, mark)

    # --- Sessions and minutes ---------------------------------------------------------

    def _check_sessions(self) -> None:
        if not self.auditor.is_blind:
            assert set(self.sessions) == set(self.auditor.closed)
        burnt: Counter[str] = Counter()
        for entry in self.ledger:
            if entry["entry_kind"] == "burn":
                burnt[f"{entry['tenant']}/{entry['session_id']}"] -= entry["amount_micros"]
        for name, row in self.sessions.items():
            is_reported = bool(row["is_reported"])
            if is_reported and self.auditor.is_blind and row["state"] != "ended":
                continue  # no minute in the month's record would restore the session
            assert row["state"] == "ended", row
            minutes = [
                {"minute": minute["minute"], "seconds": minute["seconds"],
                 "credits_micros": minute["charged_micros"]}
                for minute in self.minutes[name]
            ]  # fmt: skip
            assert [minute["minute"] for minute in minutes] == list(range(len(minutes))), minutes
            check_receipt(_receipt(row), minutes)
            assert burnt[name] == row["charged_micros"], (row, burnt[name])
            terms = json.loads(row["terms"])
            for minute in minutes:
                begin_ms = minute["minute"] * MINUTE_MS
                end_ms = min(begin_ms + MINUTE_MS, row["elapsed_ms"])
                assert 1 <= minute["seconds"] == -(-(end_ms - begin_ms) // 1000), (row, minute)
                cost = cost_micros(terms, end_ms, row["free_ms"])
                cost -= cost_micros(terms, begin_ms, row["free_ms"])
                assert minute["credits_micros"] == cost, (row, minute)
            if self.auditor.is_blind:
                continue
            standing = self.auditor.closed[name]["standing"]
            assert row["elapsed_ms"] == standing["elapsed_ms"], (row, standing)
            assert row["charged_micros"] == standing["charged_micros"], (row, standing)
            recorded = self.auditor.minutes[name]
            assert minutes == [{key: one[key] for key in minutes[0]} for one in recorded], name
        for name in self.minutes:
            assert name in self.sessions, name

    def _check_prepared(self) -> None:
        """A confirmed preparation's session runs on its terms or never.

        Exempt are preparations close to a loss of Redis's last writes that was not noticed yet.
        """
        for name, (at, wanted) in self.world.prepared.items():
            row = self.sessions.get(name)
            if row is None or any(
                abs(at - lost_at) < UNNOTICED_MS for lost_at in self.world.losses
            ):
                continue
            assert msgspec.json.decode(row["terms"], type=Terms) == wanted.terms, (row, wanted)

    def _check_proofs(self, session_log: SessionLog) -> None:
        """Nothing is billed beyond the clients' last proofs of life.

        The clients are those of the session. Unless the kind bills gaps, nothing between two of
        these proofs is billed either, where no client was there.
        """
        row = self.sessions.get(f"{session_log.person.tenant}/{session_log.session_id}")
        if row is None or not session_log.served:
            return
        most_ms, group = 0, list(min(session_log.served))
        for begin, end, found in sorted(session_log.served):
            if begin > group[2] and session_log.terms.gap != "bill":
                most_ms += group[1] - group[0]
                group = [begin, end, found]
            group[1:] = [max(group[1], end), max(group[2], found)]
        most_ms += group[1] - group[0] + session_log.reported_ms + self._clock_error_ms(session_log)
        assert row["elapsed_ms"] <= most_ms, (row, session_log.served, most_ms)

    def _clock_error_ms(self, session_log: SessionLog) -> int:
        """The largest difference between clocks of processes that served a session.

        A process that starts while Redis is slow knows the time less exactly at first. The error
        shows only where another process goes on with the session, or acts for a dead process.
        """
        if not self.world.cluster.began_slowly:
            return 0
        nodes = {
            client.node.process.node
            for client in self.world.clients
            if session_log.session_id in client.joins
        }
        is_alone = len(nodes) <= 1 and not nodes & set(self.world.deaths)
        return 0 if is_alone else CLOCK_ERROR_MS

    def _check_service(self, session_log: SessionLog) -> None:
        """At least nine tenths of the time that ticks showed is billed.

        Exempt are the time of an unanswered ping, and what only a process knew that died.
        """
        row = self.sessions.get(f"{session_log.person.tenant}/{session_log.session_id}")
        if row is None or session_log.disturbed or self.auditor.is_blind:
            return
        shown_ms = max(
            (
                message["elapsed_ms"]
                for client in self.world.clients
                for message in client.messages
                if message["type"] == "tick" and message["session_id"] == session_log.session_id
            ),
            default=0,
        )
        spared_ms = SPARED_MS * (1 + len(session_log.deaths))
        most_ms = row["elapsed_ms"] * 10 // 9 + spared_ms
        assert shown_ms <= most_ms, (row, shown_ms, session_log)

    def _check_told(self, client: SimulatedClient) -> None:
        """The record agrees with what clients received.

        No minute and no receipt is edited. Exempt is what contradicts a receipt that counts: Redis
        had lost the newest steps, and another process ended the session.
        """
        forgotten = self.world.forgotten.pieces
        for message in client.messages:
            session_log = self.world.session_logs.get(message.get("session_id", ""))
            if session_log is None:
                continue
            name = f"{session_log.person.tenant}/{session_log.session_id}"
            if message["type"] == "minute":
                if self._is_overruled(client, session_log.session_id, name, message):
                    continue
                found = [one for one in self.minutes[name] if one["minute"] == message["minute"]]
                if not found and (session_log.session_id, message["minute"]) in forgotten:
                    continue
                assert len(found) == 1, (client.name, message)
                assert found[0]["seconds"] == message["seconds"], (message, found)
            elif message["type"] == "stopped" and (session_log.session_id, None) not in forgotten:
                row, receipt = self.sessions[name], message["receipt"]
                told = (receipt["elapsed_ms"], receipt["billed_ms"], receipt["minutes"])
                kept = (row["elapsed_ms"], row["billed_ms"], row["minutes"])
                # Of two ends, the longer one counts.
                is_overruled = told < kept and self._was_ended_twice(session_log.session_id)
                assert told == kept or is_overruled, (client.name, message, row)

    def _was_ended_twice(self, session_id: str) -> bool:
        """Whether two processes ended a session: Redis had lost the first end."""
        return self.auditor.is_blind and len(self.world.forgotten.makers_of(session_id)) > 1

    def _is_overruled(
        self, client: SimulatedClient, session_id: str, name: str, message: dict[str, Any]
    ) -> bool:
        """Whether a minute contradicts the receipt of another process.

        The receipt ends within the minute, or before it.
        """
        if name not in self.sessions:
            return False  # no receipt: two failures may have taken the whole record
        makers = self.world.forgotten.makers_of(session_id)
        elapsed_ms = self.sessions[name]["elapsed_ms"]
        begin_ms = message["minute"] * MINUTE_MS
        is_cut = elapsed_ms < begin_ms + message["seconds"] * 1_000
        is_cut = is_cut and message["seconds"] != -(-max(0, elapsed_ms - begin_ms) // 1_000)
        is_longer = self._was_ended_twice(session_id) and message["seconds"] < 60
        return self.auditor.is_blind and (
            is_longer or (is_cut and bool(makers - {client.node.name}))
        )

    def _check_shown(self, client: SimulatedClient) -> None:
        """A client's shown time never steps back on one living process.

        The time may step back to the last proof of life of the session's clients, once these are
        found to be gone, or do not answer when another client joins, or when an operator stops the
        session. What was shown up to that proof stays.
        """
        if self.world.losses or self.world.deaths:
            return
        nodes: defaultdict[str, set[str]] = defaultdict(set)
        for other in self.world.clients:
            for session_id in other.joins:
                nodes[session_id].add(other.node.name)
        shown: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for message in client.messages:
            session_id = message.get("session_id", "")
            if "elapsed_ms" not in message or len(nodes[session_id]) > 1:
                continue
            elapsed_ms, at = message["elapsed_ms"], message["received_at"]
            session_log = self.world.session_logs[session_id]
            kept = (
                ms
                for ms, then in shown[session_id]
                if not (
                    session_log.took_back(then, at)
                    or session_log.is_doubted(then, at)
                    or session_log.is_stopped(then, at)
                )
            )
            before = max(kept, default=0)
            assert elapsed_ms >= before, (client.name, before, message)
            shown[session_id].append((elapsed_ms, at))

    # --- Money -------------------------------------------------------------------------

    def _check_transfers(self) -> None:
        entries = Counter(
            (entry["tenant"], entry["account_id"], entry["entry_id"]) for entry in self.ledger
        )
        assert max(entries.values(), default=1) == 1
        amounts = {
            (entry["tenant"], entry["account_id"], entry["entry_id"]): entry["amount_micros"]
            for entry in self.ledger
        }
        known = set()
        for transfer in self.money_client.transfers.values():
            assert transfer.state != "unknown", transfer
            if transfer.kind in ("pay", "spend"):
                key = (*transfer.person.account, transfer.entry_id)
                known.add(key)
                assert amounts.get(key, 0) == transfer.moved_micros, (transfer, amounts.get(key))
        posted: Counter[tuple[str, str, str]] = Counter()
        for transfer in self.money_client.transfers.values():
            if transfer.kind == "post":
                posted[(*transfer.person.account, f"post:{transfer.hold_id}")] += (
                    transfer.moved_micros
                )
        for key, micros in posted.items():
            known.add(key)
            assert amounts.get(key, 0) == micros, (key, micros, amounts.get(key))
        strange = [
            key for key, entry in zip(amounts, self.ledger, strict=True)
            if key not in known and entry["entry_kind"] != "burn"
            # The sum of these entries is checked as the account's balance.
            and (key[1] != "wallet" or not key[2].startswith("allotment:"))
        ]  # fmt: skip
        assert not strange, strange

    def _check_accounts(self) -> None:
        """The balance is granted less burnt less spent, in both engines.

        The engines are Postgres and Redis.
        """
        for person in set(self.world.people.values()):
            account = person.account
            burnt = sum(
                row["charged_micros"]
                for row in self.sessions.values()
                if (row["tenant"], row["account_id"]) == account
            )
            expected = self.money_client.moved(account)[0] - burnt
            assert self.balances.get(account, 0) == expected, (account, self.balances, expected)
            live = self.state.hashes["account"].get("/".join(account))
            if live is not None:
                where = (account, live, expected)
                assert int(live["balance"]) == expected, where
                for part in ("held", "reserved", "charged_live", "burn", "live", "holds"):
                    assert int(live.get(part, 0)) == 0, (part, where)

    def _check_free_time(self) -> None:
        """Free time that sessions share is given once, whatever Redis lost."""
        taken: Counter[tuple[str, ...]] = Counter()
        most: dict[tuple[str, ...], int] = {}
        for row in self.sessions.values():
            terms = json.loads(row["terms"])
            key: tuple[str, ...] = (row["tenant"], row["user_id"], row["kind"])
            if terms["free_scope"] == "day":
                zone = self.world.people[row["user_id"]].zone
                key = (*key, str(row["started_at"].astimezone(ZoneInfo(zone)).date()))
            if terms["free_scope"] != "session":
                taken[key] += row["free_ms"]
                most[key] = terms["free_ms"]
        for name, free_ms in taken.items():
            assert free_ms <= most[name], (name, free_ms, most[name])

    def _check_months(self) -> None:
        """The months of Redis and Postgres are the sum of the minutes."""
        counted: Counter[tuple[str, str]] = Counter()
        for minutes in self.minutes.values():
            for minute in minutes:
                if minute["counts"]:
                    month = minute["month"].isoformat()
                    counted[f"org:{minute['tenant']}", month] += 1
                    counted[f"member:{minute['tenant']}/{minute['user_id']}", month] += 1
        for row in self.world.cluster.postgres.fetch("SELECT * FROM minute_adjustments"):
            month = row["month"].isoformat()
            counted[f"org:{row['tenant']}", month] += row["minutes"]
            counted[f"member:{row['tenant']}/{row['user_id']}", month] += row["minutes"]
        for kind in ("member", "org"):
            for place, counter in self.state.hashes[kind].items():
                for key, value in counter.items():
                    part, _, month = key.partition(":")
                    if part == "used":
                        expected = counted[f"{kind}:{place}", month]
                        assert int(value) == expected, (kind, place, counter, expected)
                    elif part == "held":
                        assert int(value) == 0, (kind, place, counter)


def _receipt(row: dict[str, Any]) -> dict[str, Any]:
    """A row in the form of its receipt."""
    return {
        **row,
        "terms": json.loads(row["terms"]),
        "segments": json.loads(row["segments"]),
        "credits_micros": row["charged_micros"],
        "limit": row["limit_name"],
    }
