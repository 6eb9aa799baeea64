"""Examples of the wire: a running session, and a stopped one.

A limit stopped the second one.
"""

from protocol.wire import messages

ID = "chat:1@x.y_z-2"
ID_CHARACTERS = "ABCXYZabcxyz0189._:@|+=~-"
INSTANT = 1_793_000_000_000

RECEIPT = messages.Receipt(
    session_id=ID,
    kind="chat",
    user_id="u",
    org_id=None,
    counterpart_id=None,
    started_at=INSTANT,
    ended_at=INSTANT + 61_000,
    reason="limit",
    elapsed_ms=60_000,
    free_ms=0,
    billed_ms=60_000,
    minutes=1,
    credits="1",
    segments=[messages.Segment(from_at=INSTANT, to_at=INSTANT + 60_000)],
    gaps=[messages.Gap(from_at=INSTANT + 1, to_at=INSTANT + 2, billed=False)],
)
STOPPED = messages.Stopped(session_id=ID, seq=3, reason="limit", limit="credits", receipt=RECEIPT)
SESSION = messages.Session(
    session_id=ID,
    kind="chat",
    state="active",
    seq=0,
    started_at=INSTANT,
    elapsed_ms=0,
    free_remaining_ms=60_000,
    paid=False,
    credits="12.5",
    credits_per_minute="1",
    limit=None,
    remaining_ms=None,
    ends_at=None,
    limits=[],
    missed=[STOPPED],
    server_time_at=INSTANT,
)
