"""Shrinking: finds a short list of actions that still fails.

Delta debugging (Zeller and Hildebrandt, 2002): ever smaller chunks of the list are left out, as
long as the rest fails in the same way. After that, waits are shortened.
"""

from collections.abc import Callable, Sequence

from tests.simulation.actions import Action
from tests.simulation.driver import Laboratory, RunOutcome

ATTEMPTS_MAX = 400
SHORTER_MS = (0, 1, 1_000, 5_000, 30_000, 60_000)

Fails = Callable[[Sequence[Action]], RunOutcome | None]
"""Runs actions. Returns the outcome if they fail in the expected way, else None."""


def failing(laboratory: Laboratory, first: RunOutcome, **options: object) -> Fails:
    """A function that runs actions and checks for the same failure.

    The actions run in an outcome's world.
    """

    def fails(actions: Sequence[Action]) -> RunOutcome | None:
        again = laboratory.run(first.seed, 0, actions=actions, **options)  # type: ignore[arg-type]
        return again if again.complaint == first.complaint else None

    return fails


def shrunken(first: RunOutcome, fails: Fails, attempts: int = ATTEMPTS_MAX) -> RunOutcome:
    """The outcome found with the fewest actions, or ``first``.

    ``first`` is returned if none is shorter.
    """
    best = fails(first.actions)
    if best is None:
        return first  # the failure does not repeat, which is worth knowing
    left = attempts
    size = max(1, len(best.actions) // 2)
    while left > 0:
        start, found = 0, False
        while start < len(best.actions) and left > 0:
            less = [*best.actions[:start], *best.actions[start + size :]]
            left -= 1
            outcome = fails(less)
            if outcome is None:
                start += size
            else:
                best, found = outcome, True
        if size == 1 and not found:
            break
        size = max(1, size // 2)
    return _hurried(best, fails, left)


def _hurried(best: RunOutcome, fails: Fails, left: int) -> RunOutcome:
    """The same actions with shorter waits."""
    for index, action in enumerate(list(best.actions)):
        if action.name != "wait" or index >= len(best.actions):
            continue
        for ms in SHORTER_MS:
            if ms >= action.parameters["ms"] or left <= 0:
                break
            left -= 1
            shorter = [*best.actions]
            shorter[index] = Action("wait", {"ms": ms})
            outcome = fails(shorter)
            if outcome is not None:
                best = outcome
                break
    return best
