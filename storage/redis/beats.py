"""What Redis says of processes and of the time, as ``beat.lua`` and ``look.lua`` answer it."""

from typing import Any, NamedTuple


class Beat(NamedTuple):
    """The answer to a proof of life."""

    redis_ms: float
    """The time of Redis, epoch milliseconds."""
    nodes: dict[str, int]
    """Every process and its last proof, in cluster time."""


class ClusterView(NamedTuple):
    """What a process that starts sees of the others."""

    redis_ms: float
    nodes: dict[str, int]
    beats: int
    """Beats of all processes so far, since Redis was empty."""
    beaten_redis_ms: float
    """The time of Redis at the last of them."""
    beaten_at: int
    """Cluster time at the last of them, when it was sent."""
    believed_redis_ms: float
    """What its sender took the time of Redis for then: it was late by the difference."""
    heard: int
    """Processes that were asked for a beat."""


def beat_of(answer: list[Any]) -> Beat:
    """What ``beat.lua`` answered."""
    seconds, micros, nodes = answer
    return Beat(_redis_ms(seconds, micros), _proofs(nodes))


def cluster_view_of(answer: list[Any]) -> ClusterView:
    """What ``look.lua`` answered."""
    seconds, micros, nodes, (beats, redis_us, cluster_ms, believed_ms), heard = answer
    return ClusterView(
        _redis_ms(seconds, micros),
        _proofs(nodes),
        int(beats or 0),
        int(redis_us or 0) / 1000,
        int(cluster_ms or 0),
        float(believed_ms or 0),
        int(heard),
    )


def _redis_ms(seconds: bytes, micros: bytes) -> float:
    return int(seconds) * 1000 + int(micros) / 1000


def _proofs(nodes: list[Any]) -> dict[str, int]:
    """Processes by their last proof, of a sorted set's answer."""
    if nodes and isinstance(nodes[0], list):
        nodes = [part for pair in nodes for part in pair]
    return {
        nodes[index].decode(): int(float(nodes[index + 1])) for index in range(0, len(nodes), 2)
    }
