"""Receipts of calls: both clocks, and what was corrected."""

from collections.abc import Iterable, Sequence

import structlog

from protocol.metering.receipts import receipt
from protocol.metering.records import SessionEnded
from protocol.wire import messages
from protocol.wire.money import format_credits
from storage.postgres.call_clocks import CallClocks
from storage.postgres.records import Records, UnavailableError
from storage.rows.call_clocks import Correction, ProviderDuration

log = structlog.get_logger()


async def receipts_of(
    records: Records, tenant: str, ends: Sequence[SessionEnded]
) -> dict[str, messages.Receipt]:
    """The receipts of ended sessions of a tenant, by their ids.

    While Postgres does not answer, they lack what an outside clock has said.
    """
    asked = [end.session_id for end in ends if end.terms.is_provided]
    known: dict[str, ProviderDuration] = {}
    if asked:
        try:
            known = await CallClocks.over(records).durations(tenant, asked)
        except UnavailableError as error:
            log.warning("clocks_not_read", error=str(error))
    return {end.session_id: _receipt(end, known.get(end.session_id)) for end in ends}


async def receipt_of(records: Records, end: SessionEnded) -> messages.Receipt:
    """The receipt of one ended session; see ``receipts_of``."""
    return (await receipts_of(records, end.tenant, [end]))[end.session_id]


def _receipt(end: SessionEnded, known: ProviderDuration | None) -> messages.Receipt:
    if known is None:
        return receipt(end)
    return receipt(end, known.provider_ms, corrections_of(known.corrections))


def corrections_of(corrections: Iterable[Correction]) -> list[messages.ReceiptCorrection]:
    """The corrections that are made, as a receipt shows them."""
    return [
        messages.ReceiptCorrection(
            entry_id=made.entry_id,
            at=made.at,
            credits=format_credits(made.credits_micros),
            minutes=made.minutes,
            reason=made.reason,
        )
        for made in corrections
        if made.is_done
    ]
