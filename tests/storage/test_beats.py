"""Redis's answers to a proof of life and to a look.

The answers have two forms, one for each protocol version.
"""

import pytest

from storage.redis.beats import Beat, ClusterView, beat_of, cluster_view_of


@pytest.mark.parametrize(
    "nodes",
    [[b"one", b"5000", b"two", b"6001.0"], [[b"one", 5000.0], [b"two", 6001.0]]],
    ids=["flat", "pairs"],
)
def test_proofs_of_life_are_read_alike_from_both_protocols(nodes: list[object]) -> None:
    proofs = {"one": 5_000, "two": 6_001}
    assert beat_of([b"7", b"000250", nodes]) == Beat(7_000.25, proofs)
    last = [b"3", b"6999500", b"6001", b"6990.5"]
    assert cluster_view_of([b"7", b"000250", nodes, last, 2]) == ClusterView(
        7_000.25, proofs, beats=3, beaten_redis_ms=6_999.5, beaten_at=6_001,
        believed_redis_ms=6_990.5, heard=2,
    )  # fmt: skip


def test_before_the_first_beat_there_is_nothing() -> None:
    assert beat_of([b"7", b"0", []]) == Beat(7_000.0, {})
    empty = cluster_view_of([b"7", b"0", [], [b"", b"", b"", b""], 0])
    assert empty == ClusterView(7_000.0, {}, 0, 0.0, 0, 0.0, 0)
