"""The auditor's part for operations: how often each happened per month.

A spend counts when it is done, a hold while it is open and once it is posted. The records on their
way to Postgres are counted: every change writes one in the same step.
"""

from collections import Counter
from datetime import date
from typing import Any

from server.credits.outcomes import Limited
from tests.simulation.money_client import MoneyClient, Transfer
from tests.simulation.state import State
from tests.simulation.world import World

Name = tuple[str, str, str, str]
"""Tenant, account, operation, month."""


class Operations:
    """Counts operations, and compares with the counts of Redis and Postgres."""

    def __init__(self, world: World, money_client: MoneyClient) -> None:
        self.world = world
        self.money_client = money_client
        self.times: Counter[Name] = Counter()
        self._seen: set[tuple[Any, ...]] = set()
        """Natural keys of the records that were counted."""
        self._times_then: dict[tuple[str, str, str], int] = {}
        """How often the operation was done with each spend and hold, by tenant, account and key.

        What other users, who may have a higher limit, did before the answer is left out.
        """

    def record(self, record: dict[str, Any]) -> None:
        """Counts a record on its way to Postgres."""
        if not record.get("operation"):
            return
        key = (record["tenant"], record.get("entry_id"), record.get("hold_id"), record.get("state"))
        if key in self._seen:
            return
        self._seen.add(key)
        name = (record["tenant"], record["account_id"], record["operation"], record["month"])
        if record["t"] == "entry" and record["entry_kind"] == "spend":
            self.times[name] += (record.get("metadata") or {}).get("success", True)
        elif record["t"] == "hold":
            self.times[name] += {"open": 1, "posted": 0}.get(record["state"], -1)
        made = (*name[:2], record.get("hold_id") or record["entry_id"])
        self._times_then.setdefault(made, self.times[name])

    def check(self, state: State) -> None:
        """Redis counts what was done, and the monthly limits hold exactly."""
        for place, counted in state.hashes["operations"].items():
            tenant, _, account_id = place.partition("/")
            for field, value in counted.items():
                operation, _, month = field.partition(":")
                if month:
                    name = (tenant, account_id, operation, month)
                    assert int(value) == self.times[name], (name, counted, self.times)
            for (tenant_, account_, operation, month), times in self.times.items():
                if (tenant_, account_) == (tenant, account_id) and month in counted and times:
                    assert f"{operation}:{month}" in counted, (place, counted, self.times)
        for transfer, answer in self.money_client.limited:
            self._check_limited(transfer, answer)
        self.money_client.limited.clear()

    def _check_limited(self, transfer: Transfer, answer: Any) -> None:
        """At its limit an operation is always refused; below, never."""
        assert transfer.often is not None, transfer
        times = max(
            (
                count
                for (*account, operation, _), count in self.times.items()
                if (tuple(account), operation) == (transfer.person.account, transfer.operation)
            ),
            default=0,
        )
        if isinstance(answer, Limited):
            assert times >= transfer.often == answer.limit, (transfer, answer, self.times)
        else:
            made = (*transfer.person.account, transfer.hold_id or transfer.entry_id)
            times = self._times_then.get(made, times)
            assert times <= transfer.often, (transfer, answer, times, self.times)

    def close(self, state: State) -> None:
        """At the end Redis and Postgres have the same counts."""
        records, ask = self.world.cluster.postgres.records, self.world.cluster.postgres.ask
        for person in set(self.world.people.values()):
            account = person.account
            months = {name[3] for name in self.times if name[:2] == account}
            for month in months:
                day = date.fromisoformat(month)
                there = ask(lambda: records.operations_in_month(*account, day))  # noqa: B023
                counted = state.hashes["operations"].get("/".join(account), {})
                for operation in ("sketch", "film"):
                    times = there.get(operation, 0)
                    if not self.world.losses:
                        expected = self.times[(*account, operation, month)]
                        assert times == expected, (account, month, there, self.times)
                    if month in counted:
                        found = int(counted.get(f"{operation}:{month}", 0))
                        assert found == times, (account, month, counted, there)
