"""Compares bills with what the customers saw, and asks only them.

The code here shares nothing with the code that counts. A customer knows by its own clock when it
asked for its session, when the session was shown, and when the connection was lost; and it keeps
the minutes that the server reported. Its receipt must lie between the time that it certainly saw
and the time that it can have had at most, and the record must equal the receipt.
"""

import itertools
from decimal import Decimal
from typing import Any

from protocol.metering.terms import MINUTE_MS
from tests.faults.testbed import CREDITS, SPEED, FaultTestbed

DEATH_S = 1.0
"""Largest cost of a lost connection: a process's death, back to its last proof of life."""
ROUNDING_S = 0.05
"""Instants are rounded to milliseconds on both sides, several times in a session."""


class Bill:
    """The bill of one customer's session, in real seconds."""

    def __init__(self, receipt: dict[str, Any], seen: dict[str, Any]) -> None:
        self.receipt = receipt
        self.seen = seen
        self.counted_s: float = receipt["elapsed_ms"] / SPEED / 1000
        self.losses = len(seen["presence"]) - 1

    @property
    def seen_s(self) -> float:
        """Least time for which the session was shown to the customer."""
        total = 0.0
        for number, (_, answered_at, gone_at) in enumerate(self.seen["presence"]):
            is_last = number == self.losses
            total += float(self.seen["stop_asked_at"] if is_last else gone_at) - answered_at
        return total

    @property
    def had_s(self) -> float:
        """Most time for which the customer can have had the session."""
        return float(sum(gone_at - asked_at for asked_at, _, gone_at in self.seen["presence"]))

    @property
    def unbilled_s(self) -> float:
        """Time that was not counted although the customer was connected."""
        return self.seen_s - self.counted_s

    def problems(self, unserved_s: float, death_s: float) -> list[str]:
        """Contradictions in the bill."""
        found = []
        if self.counted_s > self.had_s + ROUNDING_S:
            found.append(f"billed {self.counted_s - self.had_s:.3f} s that it did not have")
        least_s = self.seen_s - self.losses * death_s - unserved_s - ROUNDING_S
        if self.counted_s < least_s:
            found.append(f"not billed {least_s - self.counted_s:.3f} s beyond the promise")
        if self.receipt["reason"] != "client":
            found.append(f"ended by {self.receipt['reason']}")
        segments, gaps = self.receipt["segments"], self.receipt["gaps"]
        run_ms = sum(part["to_at"] - part["from_at"] for part in segments)
        if abs(run_ms * SPEED - self.receipt["elapsed_ms"]) > SPEED * len(segments):
            found.append("segments do not add up to the counted time")
        parts = sorted((part["from_at"], part["to_at"]) for part in (*segments, *gaps))
        if any(before[1] > after[0] for before, after in itertools.pairwise(parts)):
            found.append("an instant is in two of its segments and gaps")
        return found


async def compare(
    testbed: FaultTestbed,
    receipts: list[dict[str, Any]],
    seen: list[dict[str, Any]],
    death_s: float,
) -> tuple[list[Bill], list[str]]:
    """All bills, and all problems, each with its customer."""
    bills = [Bill(receipt, one) for receipt, one in zip(receipts, seen, strict=True) if receipt]
    problems = [f"customer-{number}: no receipt" for number, one in enumerate(receipts) if not one]
    async with testbed.record() as record:
        minutes = await record.fetch("SELECT * FROM usage_tracking ORDER BY session_id, minute")
        sessions = {row["session_id"]: row for row in await record.fetch("SELECT * FROM sessions")}
        ledger = await record.fetch(
            "SELECT session_id, sum(amount_micros) AS total FROM credit_ledger GROUP BY 1"
        )
        accounts = {
            row["account_id"]: row["balance_micros"]
            for row in await record.fetch("SELECT account_id, balance_micros FROM credit_accounts")
        }
    by_session: dict[str, list[Any]] = {}
    for row in minutes:
        by_session.setdefault(row["session_id"], []).append(row)
    burnt = {row["session_id"]: int(row["total"]) for row in ledger if row["session_id"]}
    for bill in bills:
        name = bill.receipt["session_id"]
        found = bill.problems(testbed.unserved_s, death_s)
        found += _recorded(bill, by_session.get(name, []), sessions.get(name), burnt.get(name, 0))
        user = bill.receipt["user_id"]
        if accounts.get(user) != _micros(CREDITS) - _micros(bill.receipt["credits"]):
            found.append(f"the account has {accounts.get(user)}")
        problems += [f"{name}: {one}" for one in found]
    if len(sessions) != testbed.sessions:
        problems.append(f"{len(sessions)} sessions are recorded, of {testbed.sessions}")
    return bills, problems


def _recorded(bill: Bill, minutes: list[Any], session: Any, burnt_micros: int) -> list[str]:
    """Differences between a session's record and its receipt."""
    receipt, found = bill.receipt, []
    if [row["minute"] for row in minutes] != list(range(receipt["minutes"])):
        found.append(f"minutes {[row['minute'] for row in minutes]} of {receipt['minutes']}")
    if receipt["minutes"] != -(-receipt["elapsed_ms"] // MINUTE_MS):
        found.append(f"{receipt['minutes']} minutes in {receipt['elapsed_ms']} ms")
    charged = _micros(receipt["credits"])
    if sum(row["charged_micros"] for row in minutes) != charged or burnt_micros != -charged:
        found.append(f"charged {charged}, burnt {-burnt_micros}")
    if session is None or session["state"] != "ended":
        return [*found, "the session is not recorded as ended"]
    if (session["elapsed_ms"], session["charged_micros"]) != (receipt["elapsed_ms"], charged):
        found.append("the session's row is not its receipt")
    rows = {row["minute"]: row for row in minutes}
    for told in bill.seen["minutes"]:
        row = rows.get(told["minute"])
        if row is None or (row["seconds"], row["charged_micros"]) != (
            told["seconds"],
            _micros(told["credits"]),
        ):
            found.append(f"the record differs in minute {told['minute']}")
    return found


def _micros(amount: str) -> int:
    return int(Decimal(amount) * 1_000_000)
