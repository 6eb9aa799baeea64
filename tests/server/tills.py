"""What the tests of money share: an account, what is asked for it, and faults."""

from typing import Any

from server.credits.money import Money
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


async def spent(money: Money, entry_id: str, micros: int, **options: Any) -> Spent:
    answer = await money.spend(ANN, entry_id=entry_id, micros=micros, **options)
    assert isinstance(answer, Spent), answer
    return answer


async def held(money: Money, hold_id: str, micros: int, **options: Any) -> Held:
    answer = await money.hold(ANN, hold_id=hold_id, micros=micros, **{"ttl_ms": 60_000, **options})
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


def lose_replies(money: Money, script: str, *, before: bool = False) -> None:
    """The next call of a script gets no answer, though it was (or was not) done."""
    attribute = f"_{script}"
    real = getattr(money.spending, attribute)

    async def call(keys: Any, arguments: Any) -> Any:
        setattr(money.spending, attribute, real)
        if not before:
            await real(keys, arguments)
        raise LiveError("no answer")

    setattr(money.spending, attribute, call)


def lose_postgres(money: Money) -> None:
    """The next write gets no answer, and was not done: the process dies there, say."""
    real = money._scribe.write

    async def write(records: Any) -> None:
        money._scribe.write = real  # type: ignore[method-assign]
        raise UnavailableError("no answer")

    money._scribe.write = write  # type: ignore[method-assign]
