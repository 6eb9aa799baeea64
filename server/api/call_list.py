"""Calls: whose they are, what they count, and their list."""

from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.wire.errors import BadMessageError, ErrorCode, PeerError
from server.access.principals import ACTORS, READERS
from server.api.call_shapes import (
    STATES,
    CallFact,
    CallListed,
    CallPage,
    CallParkedFact,
    CallParticipant,
    CallPersonListed,
    CallRunShown,
    CallShown,
)
from server.api.session_list import SessionListed, listed, live_sessions
from server.calls import limits as call_limits
from server.calls.applier import RunKey
from server.calls.billing import Billing
from server.calls.facts import Fact
from server.calls.mapping import CallPlan, billing_of
from server.calls.metering import ParticipantFigures
from server.calls.receipts import corrections_of
from server.calls.service import Calls
from server.http.acts import Act
from server.http.openapi import CURSOR, LIMIT, ORG, Operation, described, query_parameter
from server.http.paging import cursor_of, cursor_values, page_rows
from server.http.problems import Problem
from server.http.requests import (
    path_id,
    process_of,
    query_id,
    raw_body,
    read_body,
)
from server.http.responses import answer
from storage.rows.calls import CallFilter, CallRunRow, ParticipantRow

PROVIDER = query_parameter(
    "provider", "The call's provider, where several have a call of this id: `stream`, `livekit`."
)


def calls_of(request: Request) -> Calls:
    """The calls of the process."""
    calls: Calls = request.app.state.calls
    return calls


# --- Whose call it is ------------------------------------------------------------------


@described(
    Operation(
        tag="calls",
        roles=("key", *ACTORS),
        act=Act(name="map_call", target="call:{id}"),
        path={"id": "The call. Stream: the cid; LiveKit: the room's sid."},
        parameters=(ORG, PROVIDER),
        body=CallPlan,
        answers={200: (CallShown,)},
        errors={422: ("unknown_kind",)},
    )
)
async def put_call(request: Request) -> Response:
    """Says whose a call is: participants, payer, and kind.

    Before the call, during it, or after it: what was parked is billed from its first fact. A
    participant who is billed already keeps the payer.
    """
    call_id, org_id = path_id(request), query_id(request, "org")
    plan = read_body(await raw_body(request), CallPlan)
    if plan.org_id is None and org_id is not None:
        plan = msgspec.structs.replace(plan, org_id=org_id)
    calls = calls_of(request)
    provider = await _provider(request, calls, call_id)
    _check(calls, plan)
    encoded = msgspec.json.encode(plan).decode()
    await calls.records.put_plan(provider, call_id, encoded, process_of(request).clock.now())
    calls.applier.look()
    return answer(await _shown(calls, call_id, provider))


async def _provider(request: Request, calls: Calls, call_id: str) -> str:
    """The provider that the query names, or the only one."""
    named = query_id(request, "provider")
    if named is not None:
        return named
    known = {run.provider for run in await calls.records.runs_of(call_id, None, 10)}
    known |= {plan.provider for plan in await calls.records.plans(call_id, None)}
    known = known or set(calls.adapters)
    if len(known) != 1:
        raise BadMessageError("provider: name the call's provider")
    return known.pop()


def _check(calls: Calls, plan: CallPlan) -> None:
    """Refuses a plan by which its own participants cannot be billed."""
    for participant in plan.participants or ("any",):
        found = billing_of(participant, plan, {}, calls.process.rates)
        if found == "unknown_kind":
            raise PeerError(
                ErrorCode.UNKNOWN_KIND,
                "kind: the rate card has no kind of this name with an outside clock",
            )
        if found == "not_in_plan":
            raise BadMessageError("host: is none of the participants")
        if found == "payer_elsewhere" and plan.participants:
            raise BadMessageError(
                "payer: must be of the same organisation as each participant, or be the "
                "participant, because an account pays within its organisation"
            )


# --- One call --------------------------------------------------------------------------


@described(
    Operation(
        tag="calls",
        roles=("key", *READERS),
        path={"id": "The call. Stream: the cid; LiveKit: the room's sid."},
        parameters=(PROVIDER,),
        answers={200: (CallShown,)},
        errors={404: ("unknown_call",)},
    )
)
async def read_call(request: Request) -> Response:
    """A call: its plan, newest runs, participants, and facts."""
    call_id = path_id(request)
    calls = calls_of(request)
    provider = query_id(request, "provider")
    if provider is None:
        known = {run.provider for run in await calls.records.runs_of(call_id, None, 10)}
        known |= {plan.provider for plan in await calls.records.plans(call_id, None)}
        if len(known) > 1:
            raise BadMessageError("provider: several have a call of this id")
        provider = next(iter(known), "")
    return answer(await _shown(calls, call_id, provider))


async def _shown(calls: Calls, call_id: str, provider: str) -> CallShown:
    """The call; raises ``unknown_call``."""
    plans = await calls.records.plans(call_id, provider)
    most = call_limits.CALL_RUNS_SHOWN_MAX
    runs = await calls.records.runs_of(call_id, provider, most)
    if not plans and not runs:
        raise Problem(404, "unknown_call", "nothing is known of this call")
    plan = plans[0] if plans else None
    people = await calls.records.participants(
        [(run.provider, run.call_session) for run in runs],
        most=call_limits.CALL_PARTICIPANTS_SHOWN_MAX,
    )
    parked = await _parked_facts(calls, runs)
    sessions = await sessions_of(calls, people)
    facts = {run.call_session: await _facts(calls, run) for run in runs}
    figures = {
        (one.tenant, one.session_id): one
        for run in runs
        for one in await calls.meter.figures(run.provider, run.call_session)
    }
    return CallShown(
        id=call_id,
        provider=provider,
        state=runs[0].state if runs else "planned",
        plan=msgspec.json.decode(plan.plan, type=CallPlan) if plan is not None else None,
        plan_version=plan.version if plan is not None else 0,
        runs=[_run(run, parked) for run in runs],
        participants=[
            _participant(
                person,
                sessions.get((person.tenant or "", person.session_id or "")),
                figures.get((person.tenant or "", person.session_id or "")),
                facts[person.call_session].get(person.participant, []),
            )
            for person in people
        ],
    )


def _run(run: CallRunRow, parked: dict[RunKey, list[CallParkedFact]]) -> CallRunShown:
    return CallRunShown(
        call_session=run.call_session,
        state=run.state,
        started_at=run.started_at,
        ended_at=run.ended_at,
        first_fact_at=run.seen_at,
        swept_at=run.swept_at,
        parked_facts=parked.get((run.provider, run.call_session), []),
    )


async def _parked_facts(
    calls: Calls, runs: Sequence[CallRunRow]
) -> dict[RunKey, list[CallParkedFact]]:
    """The facts of runs that failed each time, by provider and run."""
    found: dict[RunKey, list[CallParkedFact]] = {}
    names = [(run.provider, run.call_session) for run in runs if run.state == "parked"]
    most = call_limits.CALL_FACTS_FAILED_SHOWN_MAX
    for row in await calls.records.failed_facts(names, most) if names else ():
        found.setdefault((row.provider, row.call_session), []).append(
            CallParkedFact(
                kind=row.kind,
                provider_user_id=row.participant,
                happened_at=row.happened_at,
                received_at=row.received_at,
                attempts=row.attempts,
                error=row.error,
            )
        )
    return found


async def _facts(calls: Calls, run: CallRunRow) -> dict[str, list[CallFact]]:
    """The facts of a run's participants, by the provider's user id."""
    found: dict[str, list[CallFact]] = {}
    most = call_limits.CALL_FACTS_SHOWN_MAX
    for row in await calls.records.facts_of(run.provider, run.call_session, most):
        fact = msgspec.json.decode(row.fact, type=Fact)
        if fact.participant is not None:
            found.setdefault(fact.participant, []).append(
                CallFact(
                    kind=fact.kind.value,
                    device=fact.device,
                    happened_at=fact.at_ms,
                    received_at=row.received_at,
                    state=row.state,
                    swept=fact.key.startswith("sweep:"),
                )
            )
    return found


async def sessions_of(
    calls: Calls, people: Sequence[ParticipantRow]
) -> dict[tuple[str, str], SessionListed]:
    """The sessions of participants, live or recorded, by tenant and id."""
    by_tenant: dict[str, list[str]] = {}
    for person in people:
        if person.tenant is not None and person.session_id is not None:
            by_tenant.setdefault(person.tenant, []).append(person.session_id)
    found: dict[tuple[str, str], SessionListed] = {}
    for tenant, ids in by_tenant.items():
        rows = [
            row
            for row in (await calls.process.records.sessions_by_id(tenant, ids)).values()
            if row.started_at is not None
        ]
        live = await live_sessions(calls.process, tenant, rows)
        for row in rows:
            shown = listed(calls.process, row, live.get(row.session_id), is_for_user=False)
            found[tenant, row.session_id] = shown
    return found


def _participant(
    person: ParticipantRow,
    session: SessionListed | None,
    figures: ParticipantFigures | None,
    facts: list[CallFact],
) -> CallParticipant:
    billing = msgspec.convert(person.mapping, Billing) if person.mapping is not None else None
    corrections = corrections_of(figures.corrections) if figures is not None else []
    receipt = session.receipt if session is not None else None
    if receipt is not None and figures is not None:
        receipt = msgspec.structs.replace(
            receipt,
            provider_ms=figures.provider_ms,
            difference_ms=figures.difference_ms,
            corrections=corrections,
        )
    return CallParticipant(
        provider_user_id=person.participant,
        call_session=person.call_session,
        parked_because=person.parked_because,
        user_id=person.user_id,
        org_id=person.org_id,
        account_id=billing.account_id if billing is not None else None,
        kind=billing.kind if billing is not None else None,
        session_id=person.session_id,
        state=session.state if session is not None else None,
        elapsed_ms=session.elapsed_ms if session is not None else None,
        credits=session.credits if session is not None else None,
        provider_ms=figures.provider_ms if figures is not None else None,
        difference_ms=figures.difference_ms if figures is not None else None,
        corrected_because=figures.reason or None if figures is not None else None,
        corrections=corrections,
        receipt=receipt,
        facts=facts,
    )


# --- All calls -------------------------------------------------------------------------


@described(
    Operation(
        tag="calls",
        roles=("key", *READERS),
        parameters=(
            query_parameter("state", "Only runs in this state.", STATES),
            query_parameter("user", "Only runs with this user of ours."),
            query_parameter("org", "With `user`: only those in which the user is of it."),
            query_parameter("provider", "Only runs of this provider."),
            CURSOR,
            LIMIT,
        ),
        answers={200: (CallPage,)},
    )
)
async def list_calls(request: Request) -> Response:
    """Runs of calls, newest first.

    The order is by the first fact of each run, so pages neither repeat nor skip one. With
    `state=parked`: those with a participant whom nothing says how to bill, or with a fact that
    failed each time.
    """
    state = request.query_params.get("state")
    if state not in (None, *STATES["enum"]):
        raise BadMessageError("state: must be active, parked or ended")
    wanted = CallFilter(
        state=state,  # type: ignore[arg-type]
        user_id=query_id(request, "user"),
        org_id=query_id(request, "org"),
        provider=query_id(request, "provider"),
    )
    before = cursor_values(request, (int, str, str))
    count = page_rows(request)
    records = calls_of(request).records
    found = await records.page(wanted, before, count + 1)
    page = found[:count]
    people: dict[tuple[str, str], list[CallPersonListed]] = {}
    for person in await records.participants(
        [(run.provider, run.call_session) for run in page],
        most=call_limits.CALL_PARTICIPANTS_LISTED_MAX,
    ):
        people.setdefault((person.provider, person.call_session), []).append(
            CallPersonListed(
                provider_user_id=person.participant,
                parked_because=person.parked_because,
                user_id=person.user_id,
                org_id=person.org_id,
                session_id=person.session_id,
            )
        )
    parked = await _parked_facts(calls_of(request), page)
    last = page[-1] if len(found) > count else None
    return answer(
        CallPage(
            items=[
                CallListed(
                    id=run.call_id,
                    provider=run.provider,
                    call_session=run.call_session,
                    state=run.state,
                    started_at=run.started_at,
                    ended_at=run.ended_at,
                    first_fact_at=run.seen_at,
                    participants=people.get((run.provider, run.call_session), []),
                    parked_facts=parked.get((run.provider, run.call_session), []),
                )
                for run in page
            ],
            next_cursor=cursor_of(last.seen_at, last.provider, last.call_session) if last else None,
        )
    )


ROUTES = [
    Route("/v1/calls", list_calls),
    Route("/v1/calls/{id}", read_call),
    Route("/v1/calls/{id}", put_call, methods=["PUT"]),
]
