"""Grants are used in their order, whatever the order of their ledger."""

import asyncio
from collections import defaultdict
from itertools import count
from typing import Any, TypeAlias

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.metering.records import EntryPosted, Record
from storage.postgres.migrate import MIGRATIONS, migrate
from storage.postgres.records import Records
from tests.storage.examples import START, TENANT, entry, minute

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
ANN = (TENANT, "ann")

_accounts = count()


class Lot(msgspec.Struct):
    """A grant in the plain model."""

    entry_id: str
    left: int
    order: tuple[int, float, int]
    used: int = 0
    expired: int = 0


class Model:
    """Grants of one account in plain Python, one entry at a time.

    The model uses no SQL.
    """

    def __init__(self) -> None:
        self.lots: list[Lot] = []
        self.owed = 0

    def take(self, posted: EntryPosted, priority: int = 0, expires_at: int | None = None) -> None:
        amount = posted.amount_micros
        grant_id = (posted.metadata or {}).get("grant")
        if amount > 0:
            end = float("inf") if expires_at is None else expires_at
            order = (priority, end, len(self.lots))
            self.lots.append(Lot(posted.entry_id, amount, order))
        elif grant_id is not None:
            lot = next((lot for lot in self.lots if lot.entry_id == grant_id), None)
            taken = min(-amount, lot.left) if lot else 0
            if lot:
                lot.left -= taken
                lot.expired += taken
            self.owed += -amount - taken
        else:
            self.owed -= amount
        for lot in sorted(self.lots, key=lambda lot: lot.order):
            taken = min(lot.left, self.owed)
            lot.left -= taken
            lot.used += taken
            self.owed -= taken

    @property
    def figures(self) -> dict[str, tuple[int, int]]:
        return {lot.entry_id: (lot.used, lot.expired) for lot in self.lots}


async def figures_of(
    connection: Connection, account_id: str = "ann"
) -> tuple[dict[str, tuple[int, int]], int]:
    """Used and expired parts of each grant, and the amount without one."""
    rows = await connection.fetch(
        "SELECT * FROM credit_grants WHERE tenant = $1 AND account_id = $2", TENANT, account_id
    )
    owed = await connection.fetchval(
        "SELECT unattributed_micros FROM credit_accounts WHERE tenant = $1 AND account_id = $2",
        TENANT,
        account_id,
    )
    return {row["entry_id"]: (row["used_micros"], row["expired_micros"]) for row in rows}, owed or 0


AMOUNTS = st.integers(1, 12)
ENDS = st.one_of(st.none(), st.integers(1, 4).map(lambda hours: START + hours * 3_600_000))
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("grant"), AMOUNTS, st.integers(0, 2), ENDS),
        st.tuples(st.just("spend"), AMOUNTS),
        st.tuples(st.just("burn"), AMOUNTS),
        st.tuples(st.just("adjust"), st.integers(-6, 6).filter(bool)),
        st.tuples(st.just("expire"), AMOUNTS, st.integers(0, 7)),
    ),
    max_size=24,
)


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(moves=MOVES)
async def test_attribution_is_that_of_the_plain_model(
    records: Records, connection: Connection, moves: list[tuple[Any, ...]]
) -> None:
    model, granted, account_id = Model(), [], f"account-{next(_accounts)}"
    for number, (kind, amount, *rest) in enumerate(moves):
        name = f"{kind}-{number}"
        options: dict[str, Any] = {"account_id": account_id, "at_ms": START + number}
        if kind == "grant":
            made = entry(name, amount, **options)
            await records.post_entry(made, *rest)
            model.take(made, *rest)
            granted.append(name)
        elif kind == "adjust":
            made = entry(name, amount, entry_kind="adjust", **options)
            await records.post_entry(made)
            model.take(made)
        elif kind == "burn":
            one = minute(
                0, session_id=f"{account_id}.{name}", user_id=account_id, credits_micros=amount
            )
            await records.write([msgspec.structs.replace(one, account_id=account_id)])
            model.take(entry(name, -amount, entry_kind="burn"))
        else:
            metadata = None
            if kind == "expire" and granted:
                metadata = {"grant": granted[rest[0] % len(granted)]}
            made = entry(name, -amount, entry_kind=kind, metadata=metadata, **options)
            await records.write([made])
            model.take(made)
    found, owed = await figures_of(connection, account_id)
    assert found == model.figures
    assert owed == model.owed
    assert await records.audit() == ()


async def test_lower_priority_then_earlier_end_then_older(
    records: Records, connection: Connection
) -> None:
    day = 86_400_000
    for name, priority, end in (
        ("last", 100, None),
        ("later", 100, START + 2 * day),
        ("sooner", 100, START + day),
        ("older", 5, None),
        ("newer", 5, None),
    ):
        await records.post_entry(entry(name, 10), priority, end)
    left = await records.grants(*ANN, 10)
    assert [grant.entry_id for grant in left] == ["older", "newer", "sooner", "later", "last"]
    await records.write([minute(0, credits_micros=25), entry("s", -10, entry_kind="spend")])
    used = {name: used for name, (used, _) in (await figures_of(connection))[0].items()}
    assert used == {"older": 10, "newer": 10, "sooner": 10, "later": 5, "last": 0}
    left = await records.grants(*ANN, 10)
    assert [(grant.entry_id, grant.left_micros) for grant in left] == [("later", 5), ("last", 10)]


async def test_what_nothing_covers_is_paid_by_the_next_money_in(
    records: Records, connection: Connection
) -> None:
    await records.write([entry("s", -10, entry_kind="spend")])
    assert await figures_of(connection) == ({}, 10)
    await records.post_entry(entry("small", 4))
    assert await figures_of(connection) == ({"small": (4, 0)}, 6)
    await records.post_entry(entry("adjusted", 20, entry_kind="adjust"), 3)
    assert await figures_of(connection) == ({"small": (4, 0), "adjusted": (6, 0)}, 0)


async def test_a_grant_has_its_name(records: Records) -> None:
    await records.post_entry(entry("p", 5, metadata={"name": "package:starter"}), 9, START + 1)
    (grant,) = await records.grants(*ANN, 10)
    assert (grant.name, grant.priority, grant.expires_at) == ("package:starter", 9, START + 1)
    assert (grant.granted_at, grant.amount_micros) == (START, 5)


async def test_due_grants_are_paged_in_order_of_expiry(records: Records) -> None:
    for number in range(5):
        made = entry(f"g{number}", 5, account_id=f"a{number % 2}")
        await records.post_entry(made, 0, START - number // 2)
    await records.post_entry(entry("later", 5), 0, START + 1)
    await records.post_entry(entry("never", 5))
    await records.write([entry("s", -5, entry_kind="spend", account_id="a1")])
    seen, last = [], None
    while page := await records.grants_due(START + 1, 2, last):
        last = page[-1]
        seen += [grant.entry_id for grant in page]
    # The grant of a1 that ended first is used up.
    assert seen == ["g4", "g2", "g0", "g1"]


async def test_many_batches_at_once_attribute_every_credit(
    records: Records, connection: Connection
) -> None:
    grants = [entry(f"g{number}", 100, account_id=f"a{number % 3}") for number in range(30)]
    batches: dict[int, list[Record]] = defaultdict(list)
    for number in range(240):
        account_id = f"a{number % 3}"
        spend = entry(f"s{number}", -3, entry_kind="spend", account_id=account_id)
        batches[number % 8].append(spend)
    await asyncio.gather(
        *(records.post_entry(grant, number % 4) for number, grant in enumerate(grants)),
        *(records.write(batch) for batch in batches.values()),
        *(records.write(batch[::-1]) for batch in batches.values()),
    )
    assert await records.audit() == ()
    used = await connection.fetchval("SELECT sum(used_micros) FROM credit_grants")
    assert used == 240 * 3


async def test_what_was_there_before_grants_were_is_attributed(empty_database: str) -> None:
    """The migration attributes earlier spends of a ledger without grants."""
    connection = await asyncpg.connect(empty_database)
    before = sorted(MIGRATIONS.glob("000[123]_*.sql"))
    for path in before:
        await connection.execute(path.read_text("utf-8"))
    await connection.execute(
        """
        INSERT INTO credit_ledger
            (tenant, account_id, entry_id, entry_kind, amount_micros, priority)
        VALUES ('t', 'a', 'late', 'grant', 10, 9), ('t', 'a', 'first', 'grant', 10, 1),
            ('t', 'a', 's', 'spend', -14, 0), ('t', 'b', 's', 'spend', -3, 0)
        """
    )
    for path in sorted(set(MIGRATIONS.glob("*.sql")) - set(before)):
        await connection.execute(path.read_text("utf-8"))
    try:
        rows = await connection.fetch("SELECT entry_id, used_micros FROM credit_grants")
        assert {row["entry_id"]: row["used_micros"] for row in rows} == {"first": 10, "late": 4}
        owed = await connection.fetch(
            "SELECT account_id, unattributed_micros AS owed FROM credit_accounts"
        )
        assert {row["account_id"]: row["owed"] for row in owed} == {"a": 0, "b": 3}
    finally:
        await connection.close()


async def test_the_migrations_go_on_from_a_database_in_use(fresh_database: str) -> None:
    connection = await asyncpg.connect(fresh_database)
    try:
        assert await migrate(connection) == []
    finally:
        await connection.close()


@pytest.mark.parametrize(
    "change",
    [
        "used_micros = amount_micros + 1",
        "expired_micros = -1",
        "is_exhausted = true",
        "used_micros = 6, expired_micros = 5",
    ],
)
async def test_a_grant_cannot_be_what_makes_no_sense(
    records: Records, connection: Connection, change: str
) -> None:
    await records.post_entry(entry("g", 10))
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute(f"UPDATE credit_grants SET {change}")
