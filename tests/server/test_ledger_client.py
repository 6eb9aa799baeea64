"""Operations on credits find their counters, and return clear errors."""

from typing import Any

import pytest
from msgspec import UNSET

from protocol.wire.errors import ServiceError
from server.credits.outcomes import Short
from storage.redis.figures import AccountFigures
from storage.redis.live import LiveError
from storage.redis.spending import SpendingReply
from tests.fixtures.engines import grow_cold
from tests.server.ledgers import ANN, CREDIT, MAY
from tests.simulation.cluster import Cluster, Node
from tests.simulation.people import RATES


class ReplyList:
    """Replies of Redis, one after the other; the last one for good."""

    def __init__(self, *replies: SpendingReply) -> None:
        self.replies = list(replies)
        self.asked = 0

    async def __call__(self) -> SpendingReply:
        self.asked += 1
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


def figures(balance: int, held: int, reserved: int) -> AccountFigures:
    return AccountFigures(1, balance, balance, held, reserved, 0, {})


async def test_cold_counters_are_loaded_and_asked_again(cluster: Cluster, node: Node) -> None:
    keys = node.live.keys
    cold = ReplyList(
        SpendingReply("cold", None, cold="account"),
        SpendingReply("cold", None, cold="operations"),
        SpendingReply("ok", None),
    )
    assert (await node.ledger.warm(ANN, MAY, cold)).status == "ok"
    assert cold.asked == 3
    assert await node.live.is_warm(keys.account(*ANN))


@pytest.mark.parametrize(
    "answer", [SpendingReply("cold", None, cold="account"), SpendingReply("late", None)]
)
async def test_counter_that_does_not_stay_is_unavailable(
    cluster: Cluster, node: Node, answer: SpendingReply
) -> None:
    with pytest.raises(ServiceError):
        await node.ledger.warm(ANN, MAY, ReplyList(answer))


async def test_decision_without_an_answer_is_to_be_asked_for_again(
    cluster: Cluster, node: Node
) -> None:
    async def away(_: bool) -> SpendingReply:
        raise LiveError("away")

    with pytest.raises(ServiceError, match="same key"):
        await node.ledger.decide(ANN, MAY, away)
    assert node.metrics.spends.labels("unanswered")._value.get() == 1


async def test_figures_come_from_the_ledger_when_they_are_cold(
    cluster: Cluster, node: Node
) -> None:
    await cluster.grant(3 * CREDIT)
    await cluster.flush()
    await grow_cold(cluster.redis)
    found = await node.ledger.figures(ANN)
    assert found.balance_micros == 3 * CREDIT
    assert tuple(await node.ledger.balance(ANN, found)) == (3 * CREDIT, 3 * CREDIT)


async def test_limit_of_an_operation_is_the_given_one_or_the_tiers(node: Node) -> None:
    node.ledger.rates = RATES
    limit: Any = node.ledger.monthly_limit
    assert [limit("free", "sketch", given) for given in (7, None)] == [7, None]
    assert limit("free", None, UNSET) is None
    assert limit("free", "sketch", UNSET) == RATES.operations_per_month("free", "sketch")


@pytest.mark.parametrize(
    ("status", "account", "missing"),
    [
        ("short", figures(100, 0, 0), 900),
        ("short", figures(100, 30, 30), 930),
        ("held", figures(2_000, 1_500, 0), 500),
    ],
)
async def test_shortage_names_what_is_missing(
    node: Node, status: Any, account: AccountFigures, missing: int
) -> None:
    answer = SpendingReply(status, account)
    assert node.ledger.short(answer, 1_000) == Short(missing, account.balance_micros)
