"""The answers of ``beat.lua`` and ``look.lua``: the processes, and the time."""

from typing import Any, NamedTuple


class Beat(NamedTuple):
    """The answer to a process's heartbeat."""

    redis_ms: float
    """The time of Redis, in epoch milliseconds."""
    nodes: dict[str, int]
    """Every process and its last heartbeat, in cluster time."""


class ClusterView(NamedTuple):
    """What a starting process sees of the others."""

    redis_ms: float
    nodes: dict[str, int]
    beats: int
    """Heartbeats of all processes since Redis was empty."""
    beaten_redis_ms: float
    """The time of Redis at the last heartbeat."""
    beaten_at: int
    """Cluster time at the last heartbeat, when it was sent."""
    believed_redis_ms: float
    """The time of Redis that its sender assumed then. The difference shows how late the heartbeat
    was."""
    heard: int
    """The number of processes that were asked for a heartbeat."""


def beat_of(answer: list[Any]) -> Beat:
    """Reads the answer of ``beat.lua``."""
    seconds, micros, nodes = answer
    return Beat(_redis_ms(seconds, micros), _proofs(nodes))


def cluster_view_of(answer: list[Any]) -> ClusterView:
    """Reads the answer of ``look.lua``."""
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
    """Returns processes with their last heartbeats, from a sorted set's answer."""
    if nodes and isinstance(nodes[0], list):
        nodes = [part for pair in nodes for part in pair]
    return {
        nodes[index].decode(): int(float(nodes[index + 1])) for index in range(0, len(nodes), 2)
    }
