"""Every bound about calls, with its unit in its name."""

from typing import Final

from protocol import limits
from server import limits as server_limits
from server.limits import JWT_LEEWAY_MS
from storage import limits as storage_limits

CALL_PARTICIPANTS_PLANNED_MAX: Final = 1_000
"""Participants in one plan of a call: with 60 bytes each they fit into a body."""
CALL_FACT_LEASE_MS: Final = 15_000
"""Time that a process has to apply a fact that came in here; then any process may take it over. It
doubles with each failed attempt, up to sixty-four times."""
CALL_FACT_APPLY_MS: Final = 10_000
"""Longest attempt to apply one fact. It doubles as the lease does: the end of a run with thousands
of participants takes longer."""
CALL_FACT_ATTEMPTS_MAX: Final = 10
"""Failed attempts after which a fact is parked with its error: after about an hour."""
CALL_FACT_AWAY_ATTEMPTS_MAX: Final = 100
"""The same while an engine does not answer: after about a day."""
CALL_FACT_ERROR_CHARACTERS_MAX: Final = 500
CALL_FACTS_FAILED_SHOWN_MAX: Final = 20
"""Facts of one run that failed each time, as lists show them."""
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
CALL_DATA_ATTEMPTS: Final = 2
"""Failed attempts at a fact after which a provider that does not answer is not asked any more for
the call's own data, and the default counts: after half a minute."""
CALL_DATA_MS: Final = 5_000
"""How long one attempt waits for a provider to say the call's own data."""
CALL_PARTICIPANTS_BROUGHT_AT_ONCE_MAX: Final = 8
"""Participants of one run that a fact or a sweep of the whole run brings side by side."""
CALL_RUNS_HEARD_OF_MAX: Final = 4_096
"""Runs of which one process remembers that their provider has said the call's own data."""
CALL_PARTICIPANTS_ENDED_MAX: Final = 10_000
"""Participants of one run that its end is applied to."""
CALL_SWEEP_LOOK_S: Final = 5.0
"""Interval of the look for runs of calls that are due for a sweep."""
CALL_SWEEPS_PER_LOOK_MAX: Final = 10
"""The budget: runs that one process sweeps in one look, 120 a minute."""
CALL_SWEEP_INTERVAL_MS: Final = 60_000
"""Interval at which a run that lives is swept. After a failed sweep it doubles, up to an hour."""
CALL_SWEEP_IDLE_SHARE: Final = 8
"""An empty run is swept again after this part of the time that it has been empty."""
CALL_SWEEP_IDLE_MS_MAX: Final = 3_600_000
"""Longest pause between two such sweeps."""
CALL_SWEEP_SOON_MS: Final = 5_000
"""Time after which a run is swept that has ended, or of which an event says too little."""
CALL_SWEEP_MS: Final = 30_000
"""Longest sweep of one run."""
CALL_FACTS_SWEPT_PER_BATCH: Final = 100
"""Facts of a sweep that one statement keeps; other work runs between two batches."""
CALL_SWEEP_LEASE_MS: Final = 60_000
"""Time after which another process may sweep a run that a process took and did not sweep."""
CALL_SWEEP_FAILURES_MAX: Final = 100
"""Failed sweeps after which a run is not swept any more: about four days."""
CALL_EVENT_BYTES_MAX: Final = 512 * 1024
"""Largest event of a call provider, as it is sent and once it is unpacked. An event lists the
call's members: 600 bytes for each."""
CALL_EVENT_SLICE_BYTES: Final = 16 * 1024
"""Bytes of a packed event that are unpacked at once, and most bytes that they become at once."""
CALL_EVENT_AGE_MS_MAX: Final = 24 * 3_600_000
"""Oldest event of a call provider that is taken: providers repeat an event for minutes, and the
inbox remembers its events for much longer."""
CALL_EVENT_AHEAD_MS_MAX: Final = 300_000
"""How far a call provider's clock may be ahead of ours."""
CALL_ID_CHARACTERS_MAX: Final = 256
"""Longest id that a call provider gives: a call's, a run's, a user's or a device's."""
CALL_SECONDS_MAX: Final = 366 * 86_400
"""Longest stretch of a call that a provider's figure is believed for."""
CALL_CUSTOM_FIELDS_MAX: Final = 32
"""Fields of a call's custom data that a fact keeps."""
CALL_CUSTOM_CHARACTERS_MAX: Final = 256
"""Longest name or value of a call's custom data; longer ones are left out."""
CALL_REST_TIMEOUT_MS: Final = 10_000
"""One request to a call provider, from its connection to the last byte of the answer."""
CALL_REST_BYTES_MAX: Final = 4 * 1024 * 1024
CALL_REST_AT_ONCE_MAX: Final = 8
"""Threads that wait for a call provider's REST."""
CALL_SWEEP_PAGE_ROWS: Final = 100
CALL_SWEEP_PAGES_MAX: Final = 50
"""Pages of a call's participants that one sweep reads."""
CALL_TOKEN_MS: Final = 60_000
"""Life of a token for a call provider's REST: one request."""
CALL_TOKEN_BACKDATED_MS: Final = 5_000
"""How long before now such a token begins: the provider's clock may be behind ours."""
CALL_FACTS_REPLAYED_PER_BATCH: Final = 500
"""Facts of a replay that wait at the same time, beside those that come in."""
CALL_BILLS_PER_PAGE: Final = 500
CALL_REPLAY_WAIT_S: Final = 1.0
CALL_REPLAY_WAITS_MAX: Final = 120
"""Waits of a replay without progress, after which it gives up: no process applies facts."""
STUDY_CALLS_MAX: Final = 20
"""Calls of a user that the list of study sessions shows: the newest."""
STUDY_PAGE_MS_MAX: Final = 6 * 3_600_000
"""Longest time after a page's word before for which its end is believed, where no provider is set
up."""
STUDY_WORD_MS: Final = 60_000
"""Interval in which a page's repeated start is kept once, as a proof of life."""
STUDY_ASK_MS: Final = 5_000
"""How long a study session's end waits for the provider, and keeps its answer for the next one."""
STUDY_ASKS_AT_ONCE_MAX: Final = 2
STUDY_ASKS_KEPT_MAX: Final = 256
"""Runs of which one process keeps such an answer."""
CALL_RUNS_SHOWN_MAX: Final = 10
"""Runs that one call shows: its newest."""
CALL_FACTS_SHOWN_MAX: Final = 500
"""Facts that each of these runs shows: its newest."""
CALL_PARTICIPANTS_SHOWN_MAX: Final = 200
"""Participants that each run shows."""
CALL_PARTICIPANTS_LISTED_MAX: Final = 20
"""Participants of each run in the list of calls."""
CALL_PRESENCES_MAX: Final = 65_536
"""Participants of calls that one process keeps present."""
CALL_PROOF_MS: Final = 1_800_000
"""How long a provider's word that a participant is there counts. A sweep asks far more often, so
this bounds what is counted while the provider answers nothing."""
CALL_END_WAIT_MS: Final = 2_000
"""How long the process that takes a run's end waits for the process with the presence."""
CALL_ENDINGS_MAX: Final = 4_096
"""Calls that one process tells providers to end at the same time."""
CALL_END_RETRY_MS_MIN: Final = 1_000
CALL_END_RETRY_MS_MAX: Final = 60_000
"""Longest pause between two requests to end a call, which go on as long as it runs."""
SETTLEMENT_STEPS_MAX: Final = 8
"""Corrections that one settlement of two clocks makes, while other processes settle as well."""

# --- Relations -----------------------------------------------------------------------

# A fact is applied, or given up, before another process takes it over.
assert CALL_FACT_APPLY_MS < CALL_FACT_LEASE_MS
assert CALL_DATA_MS < CALL_FACT_APPLY_MS
assert CALL_DATA_ATTEMPTS < CALL_FACT_ATTEMPTS_MAX < CALL_FACT_AWAY_ATTEMPTS_MAX
assert 1_000 * CALL_FACTS_LOOK_S < CALL_FACT_LEASE_MS
assert CALL_SWEEP_MS < CALL_SWEEP_LEASE_MS <= CALL_SWEEP_INTERVAL_MS
assert CALL_SWEEPS_PER_LOOK_MAX <= storage_limits.DATABASE_CONNECTIONS_MAX
assert CALL_FACTS_TAKEN_MAX <= CALL_FACTS_WAITING_MAX
assert 2 * CALL_RUNS_APPLIED_AT_ONCE_MAX < storage_limits.DATABASE_CONNECTIONS_MAX
# A clock that is ahead is no sign of a forged event.
assert JWT_LEEWAY_MS < CALL_EVENT_AHEAD_MS_MAX < CALL_EVENT_AGE_MS_MAX
assert CALL_EVENT_SLICE_BYTES < CALL_EVENT_BYTES_MAX
# A request to a provider ends while its token is good.
assert CALL_REST_TIMEOUT_MS < CALL_TOKEN_MS
# A body that is young enough to be taken is still known to the inbox.
assert 2 * CALL_EVENT_AGE_MS_MAX < CALL_FACTS_KEPT_MS
assert 2 * CALL_REST_TIMEOUT_MS < CALL_SWEEP_MS
# After a silence that has ended a presence, the next word covers the time since.
assert CALL_PROOF_MS + server_limits.REQUEST_TIMEOUT_MS < limits.PROVIDED_SINCE_MS_MAX
assert limits.NODE_SILENT_MS < CALL_PROOF_MS
assert CALL_END_RETRY_MS_MIN < CALL_END_RETRY_MS_MAX < CALL_PROOF_MS
assert 10 * CALL_SWEEP_INTERVAL_MS < CALL_PROOF_MS
# A fact that waits for another process to end a session is applied in time.
assert CALL_END_WAIT_MS + server_limits.REQUEST_TIMEOUT_MS < CALL_FACT_APPLY_MS
# A page's repeated start keeps the time running.
assert 10 * STUDY_WORD_MS < CALL_PROOF_MS < STUDY_PAGE_MS_MAX
assert 2 * STUDY_ASKS_AT_ONCE_MAX <= CALL_REST_AT_ONCE_MAX
