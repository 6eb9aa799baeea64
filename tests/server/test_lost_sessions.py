"""A session that only the record has ends with its recorded minutes."""

import msgspec
import pytest

from protocol.metering.states import Phase
from protocol.wire.errors import ServiceError
from server.recovery.lost_sessions import LostSessions, session_of
from storage.postgres.columns import LOST
from storage.postgres.session_records import ended_of
from storage.rows.sessions import SessionMinute, SessionRow
from tests.protocol.examples import CREDIT, NOW, terms_of
from tests.simulation.cluster import Cluster, Node

TERMS = terms_of(free_ms=30_000)
ROW = SessionRow(
    tenant="user:ann", session_id="s1", state="live", kind="chat", user_id="ann", org_id=None,
    account_id="ann", counterpart_id="advisor", started_at=NOW, ended_at=None, reason=None,
    limit_name=None, elapsed_ms=0, free_ms=0, billed_ms=0, minutes=0, charged_micros=0,
    uncovered_ms=0, segments=[], gaps=[], terms=TERMS, metadata={"topic": "stars"},
)  # fmt: skip
MINUTES = (
    SessionMinute(0, NOW, 60, 30_000, CREDIT // 2, "2026-05-01"),
    # The session paused for ten seconds between the two.
    SessionMinute(1, NOW + 70_000, 45, 0, CREDIT * 3 // 4, "2026-05-01"),
)


def test_session_ends_with_its_recorded_minutes() -> None:
    ended = ended_of(ROW, MINUTES)
    assert (ended.reason, ended.minutes, ended.elapsed_ms, ended.free_ms) == (
        LOST, 2, 105_000, 30_000,
    )  # fmt: skip
    assert (ended.billed_ms, ended.credits_micros) == (75_000, CREDIT * 5 // 4)
    assert [tuple(part) for part in ended.segments] == [
        (NOW, NOW + 60_000), (NOW + 70_000, NOW + 115_000),
    ]  # fmt: skip
    assert ended.ended_at == NOW + 115_000
    assert ended.metadata == {"topic": "stars"}


def test_session_without_a_recorded_minute_ends_where_it_began() -> None:
    ended = ended_of(ROW, ())
    assert (ended.ended_at, ended.elapsed_ms, ended.credits_micros) == (NOW, 0, 0)


@pytest.mark.parametrize(("scope", "has_key"), [("session", False), ("pair", True)])
def test_ended_session_is_older_than_every_version_of_it(scope: str, has_key: bool) -> None:
    row = msgspec.structs.replace(ROW, terms=msgspec.structs.replace(TERMS, free_scope=scope))
    session = session_of(row.identity, ended_of(row, MINUTES))
    standing = session.standing
    assert (standing.version, standing.phase, standing.reason) == (0, Phase.ENDED, LOST)
    assert standing.elapsed_ms == standing.settled_ms == 105_000
    assert standing.charged_micros == CREDIT * 5 // 4
    assert (session.identity.free_key is not None) is has_key


async def test_no_session_is_lost_while_the_record_is_behind(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: LostSessions = node.recovery._lost_sessions
    assert await lost.end() == 0
    await cluster.grant(5 * CREDIT)
    await node.browser().start("s1", TERMS)
    await cluster.flush()
    assert await lost.end() == 0, "Redis has it"

    async def every_partition(_: int) -> set[int]:
        return set(range(node.live.keys.partitions))

    monkeypatch.setattr(node.loader, "behind", every_partition)
    with pytest.raises(ServiceError, match="behind"):
        await lost.end()
