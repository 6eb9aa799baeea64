"""Directed worlds: situations that chance brings about too rarely, written by hand.

Each world reaches lines of the scripts in a situation in which these lines matter. The auditor
knows what must hold; where no general rule covers an expectation, the world states it (``expect``
and ``answered``). ``scripts/mutate`` runs these worlds first.
"""

from tests.simulation.directed.answers import ANSWERS
from tests.simulation.directed.ends import ENDS
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
    **MONTHS, **REPORTED, **REPORTED_MORE, **MONEY, **SESSIONS, **LOSSES, **FORKS, **ENDS,
    **RETURNS, **ANSWERS, **GRANTS, **RESTORED, **LATE,
}  # fmt: skip
"""The directed worlds by name."""
