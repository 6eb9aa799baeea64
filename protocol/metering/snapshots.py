"""What a session shows at an instant: the snapshot and the tick."""

from protocol.metering import limit_positions
from protocol.metering.meter import Meter
from protocol.metering.notices import decode_notice
from protocol.metering.states import Phase
from protocol.wire import messages
from protocol.wire.codec import format_tick
from protocol.wire.money import format_credits


def snapshot(
    meter: Meter,
    now_ms: int,
    missed: tuple[bytes, ...] = (),
    request_id: int | None = None,
    seq: int | None = None,
) -> messages.Session:
    """Returns the ``session`` message: all that is known at ``now_ms``."""
    identity, standing = meter.session.identity, meter.session.standing
    elapsed_ms = meter.shown_at(now_ms)
    limit = limit_positions.first(meter.positions)
    remaining_ms = None if limit is None else max(0, meter.positions[limit] - elapsed_ms)
    ends_at = None
    if remaining_ms is not None and meter.counting:
        ends_at = now_ms + remaining_ms // identity.terms.speed
    elif meter.phase is Phase.STOPPING:
        ends_at = standing.grace_until
    return messages.Session(
        id=request_id,
        session_id=identity.session_id,
        kind=identity.kind,
        state=meter.phase.value,
        seq=meter.notices.seq if seq is None else seq,
        started_at=identity.started_at,
        elapsed_ms=elapsed_ms,
        free_remaining_ms=max(0, standing.free_ms - elapsed_ms),
        paid=meter.paid(elapsed_ms),
        credits=format_credits(meter.credits_at(now_ms)),
        credits_per_minute=format_credits(identity.terms.price_micros),
        limit=limit,  # type: ignore[arg-type]
        remaining_ms=remaining_ms,
        ends_at=ends_at,
        limits=[
            messages.LimitRemaining(
                limit=name,  # type: ignore[arg-type]
                remaining_ms=max(0, position_ms - elapsed_ms),
            )
            for name, position_ms in sorted(meter.positions.items(), key=lambda item: item[1])
        ],
        missed=[decode_notice(notice, elapsed_ms) for notice in missed],
        server_time_at=now_ms,
        speed=identity.terms.speed,
    )


def tick(meter: Meter, template: bytes, now_ms: int) -> bytes:
    """Returns the ``tick`` as bytes; its work is independent of age."""
    elapsed_ms = meter.shown_at(now_ms)
    limit = limit_positions.first(meter.positions)
    return format_tick(
        template,
        elapsed_ms=elapsed_ms,
        free_remaining_ms=max(0, meter.session.standing.free_ms - elapsed_ms),
        paid=meter.paid(elapsed_ms),
        credits_micros=meter.credits_at(now_ms),
        remaining_ms=None if limit is None else max(0, meter.positions[limit] - elapsed_ms),
        limit=limit,
    )
