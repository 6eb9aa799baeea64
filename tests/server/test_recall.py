"""What sessions merely hold is given back before a spend is refused."""

import asyncio
from typing import Any

import pytest

from protocol.wire.errors import ServiceError
from server.counters import recall
from server.counters.recall import Recall, may_free
from storage.redis.spending import SpendingReply, Status
from tests.server.billed_session import eventually
from tests.server.ledgers import ANN
from tests.simulation.cluster import Cluster, Node


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({}, True),
        ({"bumped": True}, True),
        ({"recall": True}, False),
        ({"recall": True, "bumped": True}, True),
        ({"credit": {"reason": "grant"}, "bumped": True}, True),
        ({"credit": {"reason": "spend"}, "bumped": True}, False),
        ({"credit": {"reason": "hold"}, "bumped": True}, False),
    ],
)
def test_only_what_may_free_credits_is_worth_an_attempt(
    message: dict[str, Any], expected: bool
) -> None:
    assert may_free(message) is expected


class Attempts:
    """Successive attempts with their answers, and whether each one sends a recall.

    The recall goes to the holders.
    """

    def __init__(self, *statuses: Status) -> None:
        self.statuses = list(statuses)
        self.told: list[bool] = []

    async def __call__(self, recall: bool) -> SpendingReply:
        self.told.append(recall)
        return SpendingReply(self.statuses.pop(0), None)


async def test_attempt_is_made_again_when_something_was_given_back(
    cluster: Cluster, node: Node
) -> None:
    accounts, attempts = node.registry.accounts, Attempts("held", "held", "ok")
    waiting = asyncio.create_task(Recall(accounts, wait_ms=3_600_000).until(ANN, attempts))

    async def has_tried(times: int) -> None:
        async def tried() -> bool:
            return len(attempts.told) == times

        await eventually(tried)

    await has_tried(1)
    await node.live.tell(*ANN, {"recall": True})  # frees nothing
    await node.live.tell(*ANN, {"freed": True})
    await has_tried(2)
    await node.live.tell(*ANN, {"freed": True})
    assert (await waiting).status == "ok"
    assert attempts.told == [True, False, False]
    assert accounts.get(*ANN) is None, "no user of the account is left"


@pytest.mark.parametrize("is_unanswered", [False, True])
async def test_wait_ends_in_a_last_attempt(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch, is_unanswered: bool
) -> None:
    async def looked(*_: object) -> bool:
        return is_unanswered

    monkeypatch.setattr(recall, "is_unanswered", looked)
    attempts = Attempts("held", "held")
    work = Recall(node.registry.accounts, wait_ms=0).until(ANN, attempts)
    if is_unanswered:
        with pytest.raises(ServiceError):
            await work
    else:
        assert (await work).status == "held"
    assert attempts.told == [True, False]
    assert node.registry.accounts.get(*ANN) is None
