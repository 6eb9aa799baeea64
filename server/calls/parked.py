"""What is parked: participants without a payer, and facts that fail."""

from collections.abc import AsyncIterator

from server.calls import limits as call_limits
from storage import limits as storage_limits
from storage.postgres.calls import CallRecords
from storage.rows.calls import CallFilter, FailedFact, ParticipantRow


async def failed_facts(records: CallRecords) -> AsyncIterator[FailedFact]:
    """The facts that failed each time they were applied, newest runs first."""
    before: tuple[int, str, str] | None = None
    wanted, rows = CallFilter("parked"), storage_limits.PAGE_ROWS_MAX
    while page := await records.page(wanted, before, rows):
        runs = [(run.provider, run.call_session) for run in page]
        for fact in await records.failed_facts(runs, call_limits.CALL_FACTS_FAILED_SHOWN_MAX):
            yield fact
        before = (page[-1].seen_at, page[-1].provider, page[-1].call_session)


async def parked_participants(records: CallRecords) -> AsyncIterator[ParticipantRow]:
    """Every parked participant, newest runs first."""
    before: tuple[int, str, str] | None = None
    wanted, rows = CallFilter("parked"), storage_limits.PAGE_ROWS_MAX
    while page := await records.page(wanted, before, rows):
        for run in page:
            after, count = "", storage_limits.CALL_PARTICIPANTS_READ_MAX
            while count == storage_limits.CALL_PARTICIPANTS_READ_MAX:
                people = await records.participants([(run.provider, run.call_session)], after)
                count = len(people)
                for person in people:
                    after = person.participant
                    if person.parked_because is not None:
                        yield person
        before = (page[-1].seen_at, page[-1].provider, page[-1].call_session)
