"""The simulator's auditor over calls: money, grants, minutes and records."""

from collections import defaultdict
from typing import Any

from tests.calls.virtual_calls import VirtualCalls
from tests.simulation import agreement, grants
from tests.simulation.auditor import EXPECTED, Auditor
from tests.simulation.clients import SessionLog
from tests.simulation.evidence import check_minutes, check_receipt
from tests.simulation.money_client import MoneyClient
from tests.simulation.people import Person
from tests.simulation.state import State, look
from tests.simulation.world import World

Account = tuple[str, str]
APPLIED_MS = 90_000
"""By then Redis has applied an entry of the record, whatever died meanwhile."""


class _Logs(dict[str, SessionLog]):
    """Logs of sessions without clients."""

    def __init__(self, calls: VirtualCalls) -> None:
        super().__init__()
        self._terms = calls.cluster.rates.terms("call")

    def __missing__(self, session_id: str) -> SessionLog:
        person = Person(session_id.rpartition(":")[2], None, "")
        made = self[session_id] = SessionLog(person, self._terms, session_id, disturbed=True)
        return made


class CallAuditor(Auditor):
    """Audits the sessions of calls, which no client keeps alive.

    The figures of Redis and all records are those that the auditor computes itself. What clients
    see has no part here; the bills are compared with the true calls elsewhere.
    """

    def __init__(self, calls: VirtualCalls) -> None:
        self._entries: defaultdict[Account, dict[str, int]] = defaultdict(dict)
        """Entries that Redis made itself, by account and id."""
        world = World(calls.cluster, [])
        world.session_logs = _Logs(calls)
        super().__init__(world, MoneyClient(world))
        self._calls = calls

    def audit(self) -> State:
        """Audits the world; raises ``AssertionError``."""
        world = self.world
        assert not world.cluster.script_errors, world.cluster.script_errors
        for host in world.cluster.hosts:
            bugs = [error for error in host.failures if not isinstance(error, EXPECTED)]
            assert not bugs, bugs
        state = look(world.cluster.redis)
        self._redis_latest = max(self._redis_latest, self._redis_now)
        for entry, records in state.outbox.items():
            if entry not in state.replayed:
                self._record(entry, records)
        self.audits += 1
        agreement.check(state, self._redis_now, self._redis_latest)
        for name, session in state.sessions.items():
            if name not in self.closed:
                self._check_session(session)
                self._check_records(name, session)
        for name, account in state.hashes["account"].items():
            self._check_account(state, name, account)
        for deal in world.deals:
            grants.check(deal)
        for step, figures in world.accepted:
            self._check_step(step, figures)
        for told in (world.deals, world.accepted, world.stops, world.refusals, world.months_told):
            told.clear()
        world.held.clear()
        self.close(state)
        return state

    def _record(self, entry: str, records: list[dict[str, Any]]) -> None:
        super()._record(entry, records)
        for record in records:
            if record["t"] == "entry":
                account = record["tenant"], record["account_id"]
                self._entries[account][record["entry_id"]] = record["amount_micros"]

    def _check_records(self, name: str, session: dict[str, Any]) -> None:
        """Each minute is recorded once, and a receipt explains itself."""
        check_minutes(session, self.minutes[name], "UTC")
        ended = self.ended.get(name)
        assert (ended is not None) == (session["standing"]["phase"] == "ended"), name
        if ended is not None:
            check_receipt(ended, self.minutes[name])

    def _check_balance(self, account: Account, balance: int, burnt: int, where: Any) -> None:
        """Redis's own entries count, and those of the record once applied."""
        made = self._entries[account]
        rows = self._calls.fetch(
            "SELECT entry_id, amount_micros, is_new FROM (SELECT *, created_at >"
            " to_timestamp($3::bigint / 1000.0) AS is_new FROM credit_ledger) AS entry"
            " WHERE tenant = $1 AND account_id = $2 AND entry_kind <> 'burn'",
            *account, self.world.now - APPLIED_MS,
        )  # fmt: skip
        sure, sums = sum(made.values()), {0}
        for row in rows:
            if row["entry_id"] in made:
                continue
            if row["is_new"] and len(sums) < 4_096:
                sums |= {total + row["amount_micros"] for total in sums}
            else:
                sure += row["amount_micros"]
        assert balance + burnt - sure in sums, (where, burnt, sure, sums)
