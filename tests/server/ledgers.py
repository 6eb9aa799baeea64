"""Helpers of the tests of money: an account, its charges, and faults."""

from typing import Any

from server.credits.credit_ledger import CreditLedger
from server.credits.outcomes import Held, Spent
from storage.audit import audit_live, audit_record
from storage.postgres.records import UnavailableError
from storage.redis.live import LiveError
from storage.redis.spending import AccountName
from tests.simulation.cluster import Cluster

CREDIT = 1_000_000
TENANT = "user:ann"
ANN = AccountName(TENANT, "ann")
MAY = "2026-05-01"


async def spent(ledger: CreditLedger, entry_id: str, micros: int, **options: Any) -> Spent:
    answer = await ledger.spend(ANN, entry_id=entry_id, micros=micros, **options)
    assert isinstance(answer, Spent), answer
    return answer


async def held(ledger: CreditLedger, hold_id: str, micros: int, **options: Any) -> Held:
    answer = await ledger.hold(ANN, hold_id=hold_id, micros=micros, **{"ttl_ms": 60_000, **options})
    assert isinstance(answer, Held), answer
    return answer


async def audited(cluster: Cluster) -> None:
    """Everything adds up: the record by itself, and Redis with the record."""
    await cluster.settle()
    assert await audit_record(cluster.records) == ()
    found = await audit_live(cluster.nodes[0].live, cluster.records)
    assert (found.findings, found.restless) == ((), 0)
    await cluster.flush()
    assert await audit_record(cluster.records) == ()
    assert (await audit_live(cluster.nodes[0].live, cluster.records)).findings == ()


def lose_replies(ledger: CreditLedger, script: str, *, before: bool = False) -> None:
    """The next call of a script gets no answer.

    The script is carried out unless ``before``.
    """
    attribute = f"_{script}"
    real = getattr(ledger.spending, attribute)

    async def call(keys: Any, arguments: Any) -> Any:
        setattr(ledger.spending, attribute, real)
        if not before:
            await real(keys, arguments)
        raise LiveError("no answer")

    setattr(ledger.spending, attribute, call)


def lose_postgres(ledger: CreditLedger) -> None:
    """The next write gets no answer and is not done.

    The process behaves as if it died there.
    """
    real = ledger._writer.write

    async def write(records: Any) -> None:
        ledger._writer.write = real  # type: ignore[method-assign]
        raise UnavailableError("no answer")

    ledger._writer.write = write  # type: ignore[method-assign]
