"""Doubt: a socket joined a session whose other sockets have proven nothing for a while.

Either they are there, and another tab was opened; or their line was cut, nobody has noticed,
and the client is back over another one. They are asked. Who is there answers within a round
trip. Where none does, nobody has proven the time before the join: it is a gap.
"""

import msgspec

from protocol import limits


class Doubt(msgspec.Struct):
    """What is asked, and what is known so far."""

    came_at: int
    """When the socket joined: what follows is for it to prove."""
    proven_at: int
    """The newest proof of life of those who were there before."""
    is_told: bool
    """Those who were there have said which is their newest one."""
    until: int
    """Until then an answer is waited for."""
    is_over: bool = False
    """It was waited for in vain: the gap is about to be recorded."""

    def told_of_another(self, came_at: int) -> None:
        """Another process asks the same since a socket joined there at ``came_at``. The gap ends
        with the first of the joins; both processes record the same one."""
        self.came_at = min(self.came_at, came_at)

    def told(self, at_ms: int) -> bool:
        """One of those who were there has last proven its life at ``at_ms``. True: since the
        join, or just before, where another process knows of it: so no doubt is left."""
        self.is_told = True
        self.proven_at = max(self.proven_at, at_ms)
        return self.proven_at >= self.came_at - limits.DOUBT_MS
