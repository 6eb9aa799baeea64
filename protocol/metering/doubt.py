"""Doubt: a socket joined while the session's others prove nothing.

There are two cases. Either the earlier sockets are alive, and the user opened another tab. Or their
connection was cut, no process has noticed, and the client is back over another connection. The
process therefore probes the earlier sockets. A live socket answers within a round trip. If none
answers, the time before the join is not proven: it is a gap.
"""

import msgspec

from protocol import limits


class Doubt(msgspec.Struct):
    """A doubt in progress: the join, and the proofs known since."""

    came_at: int
    """When the socket joined. It must prove the time from then on."""
    proven_at: int
    """The newest proof of life of the earlier sockets."""
    is_told: bool
    """The newest proof of the earlier sockets is known."""
    until: int
    """Deadline of an answer."""
    is_over: bool = False
    """The deadline passed without an answer: the gap is about to be recorded."""

    def told_of_another(self, came_at: int) -> None:
        """Takes the doubt of another process, where a socket joined at ``came_at``.

        The gap ends with the first of the joins, so both processes record the same gap.
        """
        self.came_at = min(self.came_at, came_at)

    def told(self, at_ms: int, *, is_gone: bool = False) -> bool:
        """Takes a proof of life of an earlier socket, at ``at_ms``.

        ``is_gone``: the socket was the last one of its process, and has gone then.

        Returns whether no doubt is left: the proof is from after the join, or from just before it,
        if another process knows of the proof.
        """
        self.is_told = True
        self.proven_at = max(self.proven_at, at_ms)
        return not is_gone and self.proven_at >= self.came_at - limits.DOUBT_MS
