"""Receipts: what a session cost, by its last standing or record."""

from collections.abc import Sequence

from protocol.metering.records import SessionEnded
from protocol.wire import messages
from protocol.wire.money import format_credits


def receipt(
    ended: SessionEnded,
    provider_ms: int | None = None,
    corrections: Sequence[messages.ReceiptCorrection] = (),
) -> messages.Receipt:
    """Returns the receipt of an ended session (PROTOCOL section 1).

    ``provider_ms`` is the duration of the same time by an external clock, if there is one;
    ``corrections`` are the entries that followed it.
    """
    difference_ms = None if provider_ms is None else provider_ms - ended.elapsed_ms
    return messages.Receipt(
        session_id=ended.session_id,
        kind=ended.kind,
        user_id=ended.user_id,
        org_id=ended.org_id,
        counterpart_id=ended.counterpart_id,
        started_at=ended.started_at,
        ended_at=ended.ended_at,
        reason=ended.reason,  # type: ignore[arg-type]
        elapsed_ms=ended.elapsed_ms,
        free_ms=ended.free_ms,
        billed_ms=ended.billed_ms,
        minutes=ended.minutes,
        credits=format_credits(ended.credits_micros),
        segments=[
            messages.Segment(from_at=from_at, to_at=to_at) for from_at, to_at in ended.segments
        ],
        gaps=[
            messages.Gap(from_at=from_at, to_at=to_at, billed=billed)
            for from_at, to_at, billed in ended.gaps
        ],
        provider_ms=provider_ms,
        difference_ms=difference_ms,
        corrections=list(corrections) or None,
    )
