"""Directed worlds: what chance brings about too rarely, written down by hand.

Each reaches lines of the scripts, in a situation in which they matter. What is to be is known to
the auditor; where only a person can say what was to be expected, the world says so (``expect`` and
``answered``). ``scripts/mutate`` runs them before any others.
"""

from tests.simulation.directed.answers import ANSWERS
from tests.simulation.directed.forks import FORKS
from tests.simulation.directed.grants import GRANTS
from tests.simulation.directed.late import LATE
from tests.simulation.directed.losses import LOSSES
from tests.simulation.directed.money import MONEY
from tests.simulation.directed.months import MONTHS, REPORTED
from tests.simulation.directed.reported import REPORTED_MORE
from tests.simulation.directed.restored import RESTORED
from tests.simulation.directed.returns import RETURNS
from tests.simulation.directed.sessions import SESSIONS
from tests.simulation.directed.steps import Directed

DIRECTED: dict[str, Directed] = {
    **MONTHS, **REPORTED, **REPORTED_MORE, **MONEY, **SESSIONS, **LOSSES, **FORKS, **RETURNS,
    **ANSWERS, **GRANTS, **RESTORED, **LATE,
}  # fmt: skip
"""By their names."""
