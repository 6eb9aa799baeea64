"""Every bound about calls, with its unit in its name."""

from typing import Final

from storage import limits as storage_limits

USER_HASH_CHARACTERS: Final = 22  # PROTOCOL
"""Characters of the hash in place of a user whose id makes a call's session id too long."""
CALL_PARTICIPANTS_PLANNED_MAX: Final = 1_000
"""Participants in one plan of a call: with 60 bytes each they fit into a body."""
CALL_FACT_LEASE_MS: Final = 15_000
"""Time that a process has to apply a fact that came in here; then any process may take it over. It
doubles with each failed attempt, up to sixty-four times."""
CALL_FACT_APPLY_MS: Final = 10_000
"""Longest attempt to apply one fact."""
CALL_FACTS_WAITING_MAX: Final = 4_096
"""Facts that one process has in memory to be applied. Those beyond wait in Postgres."""
CALL_FACTS_TAKEN_MAX: Final = 256
"""Facts that one statement takes over."""
CALL_FACTS_LOOK_S: Final = 5.0
"""Interval of the look for facts whose process did not apply them."""
CALL_RUNS_APPLIED_AT_ONCE_MAX: Final = 4
"""Runs of calls whose facts one process applies side by side: most connections to Postgres are
for others."""
CALL_FACTS_KEPT_MS: Final = 30 * 24 * 3_600_000
"""How long an applied fact and its body are kept."""
CALL_FACTS_PRUNE_INTERVAL_S: Final = 600.0
CALL_FACTS_PRUNED_PER_BATCH: Final = 1_000
"""Old facts that one statement deletes; other statements run between two batches."""
CALL_FACT_MAPPINGS_MAX: Final = 4
"""Looks at a call's plan for one fact, while backends put new plans."""
CALL_PARTICIPANTS_ENDED_MAX: Final = 10_000
"""Participants of one run that its end is applied to."""
CALL_SWEEP_LOOK_S: Final = 5.0
"""Interval of the look for runs of calls that are due for a sweep."""
CALL_SWEEPS_PER_LOOK_MAX: Final = 10
"""The budget: runs that one process sweeps in one look, 120 a minute."""
CALL_SWEEP_INTERVAL_MS: Final = 60_000
"""Interval at which a run that lives is swept. After a failed sweep it doubles, up to an hour."""
CALL_SWEEP_SOON_MS: Final = 5_000
"""Time after which a run is swept that has ended, or of which an event says too little."""
CALL_SWEEP_MS: Final = 30_000
"""Longest sweep of one run."""
CALL_SWEEP_LEASE_MS: Final = 60_000
"""Time after which another process may sweep a run that a process took and did not sweep."""
CALL_SWEEP_FAILURES_MAX: Final = 100
"""Failed sweeps after which a run is not swept any more: about four days."""

# --- Relations -----------------------------------------------------------------------

# A fact is applied, or given up, before another process takes it over.
assert CALL_FACT_APPLY_MS < CALL_FACT_LEASE_MS
assert 1_000 * CALL_FACTS_LOOK_S < CALL_FACT_LEASE_MS
assert CALL_SWEEP_MS < CALL_SWEEP_LEASE_MS <= CALL_SWEEP_INTERVAL_MS
assert CALL_SWEEPS_PER_LOOK_MAX <= storage_limits.DATABASE_CONNECTIONS_MAX
assert CALL_FACTS_TAKEN_MAX <= CALL_FACTS_WAITING_MAX
assert 2 * CALL_RUNS_APPLIED_AT_ONCE_MAX < storage_limits.DATABASE_CONNECTIONS_MAX
