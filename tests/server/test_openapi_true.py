"""``/openapi.json`` is true: schemathesis sends what it allows and forbids.

Schemathesis calls every described route with every kind of bearer: at the edges of every field,
with forbidden values, and in sequences. An answer must have a status, a media type and a form that
the document names; forbidden requests are refused, and allowed requests are not called malformed.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
import schemathesis
from schemathesis.engine import events, from_schema

from server import limits as server_limits
from tests.fixtures.server import API_KEY, TestServer
from tests.server.api import ask, grant

SEED = 20_261_125
EXAMPLES = 5
ALLOWED = ["2xx", "401", "402", "403", "404", "409", "422", "429"]
"""Statuses that a request in the documented form may get; not 400, and never 5xx."""
REFUSED = ["400", "401", "403", "404", "413", "422"]
"""Statuses that a request in a forbidden form may get."""
UNSPEAKABLE = {
    "GET /v1/accounts/{id}/ledger": "a cursor is one that a page gave",
    "GET /v1/accounts/{id}/estimate": "a kind, or a prepared session, is named",
    "GET /v1/sessions": "a cursor is one that a page gave, and a span begins before it ends",
    "POST /v1/accounts/{id}/grants": "a grant does not expire before it is made",
    "POST /v1/accounts/{id}/spend": "metadata is short, and a user names an operation",
    "POST /v1/accounts/{id}/holds": "metadata is short",
    "POST /v1/holds/{id}/post": "metadata is short",
    "POST /v1/sessions": "metadata is short",
    "POST /v1/sessions/{id}/heartbeat": "metadata is short",
    "POST /v1/stream/{id}": "messages are short together",
    "POST /v1/orgs/{id}/members/{user}/adjustments": "a month has begun",
    "POST /api/study-sessions/stream-duration": "a backend names the user",
    "GET /api/study-sessions/daily-hours": "a day is one of the calendar",
    "GET /v1/calls": "a cursor is one that a page gave",
    "GET /v1/ops/log": "a cursor is one that a page gave",
    "GET /v1/ops/sessions": "a filter is one of the grammar",
    "GET /v1/ops/sessions.csv": "a filter is one of the grammar",
    "GET /v1/calls/{id}": "a provider is named where several have the call",
    "PUT /v1/calls/{id}": "a provider is named, and a payer is of the participants' organisation",
    "PUT /v1/orgs/{id}": "zones and tiers are those that the server knows",
    "POST /api/usage/track-minute": "a minute is of today",
    "GET /v1/ops/reports/calls.csv": "a report begins before it ends",
    "GET /v1/ops/reports/usage.csv": "a report begins before it ends",
}
"""Calls with a rule that no schema can express; they may answer 400 to a fitting request."""
ENDLESS = ("GET /v1/stream",)
"""Calls whose answer has no end, which schemathesis would wait for."""
NOT_FOR_OPERATORS = "/api/"
"""Paths of existing applications, which refuse a user who is an operator."""


def configuration(bearer: str, known: list[str]) -> dict[str, Any]:
    """Schemathesis's settings: all kinds of requests, and the same each time."""
    malformed = {"positive_data_acceptance": {"expected-statuses": [*ALLOWED, "400", "413"]}}
    return {
        "seed": SEED,
        "workers": 1,
        "continue-on-failure": True,
        "headers": {"Authorization": f"Bearer {bearer}"},
        "generation": {"deterministic": True, "max-examples": EXAMPLES, "database": "none"},
        "checks": {
            "positive_data_acceptance": {"expected-statuses": ALLOWED},
            "negative_data_rejection": {"expected-statuses": REFUSED},
        },
        "operations": [
            *({"include-name": name, "checks": malformed} for name in UNSPEAKABLE),
            *({"include-name": name, "enabled": False} for name in ENDLESS),
        ],
        # Half of the ids exist; schemathesis invents the others.
        "dictionaries": {"known": {"values": known}},
        "parameters": {
            "path.id": {"dictionary": "known", "probability": 0.5},
            # The user that a backend or an operator means; a user's token names its own user.
            "query.user": "ann",
        },
    }


class Answers:
    """The outcome of a run: failures, and the answers of each operation."""

    def __init__(self) -> None:
        self.wrong: dict[str, str] = {}
        self.statuses: defaultdict[str, set[int]] = defaultdict(set)

    def see(self, event: events.EngineEvent) -> None:
        """Keeps the failures of an event, the first of each kind."""
        if isinstance(event, events.NonFatalError | events.FatalError):
            self.wrong[str(event.id)] = repr(getattr(event, "value", event))
        if not isinstance(event, events.ScenarioFinished):
            return
        for case_id, interaction in event.recorder.interactions.items():
            label = event.recorder.cases[case_id].value.operation.label
            assert interaction.response is not None, label
            self.statuses[label].add(interaction.response.status_code)
        for case_id, checks in event.recorder.checks.items():
            label = event.recorder.cases[case_id].value.operation.label
            for check in checks:
                if check.failure_info is not None:
                    failure = check.failure_info.failure
                    what = f"{label}: {failure.title}: {failure.message}"
                    sample = check.failure_info.code_sample
                    self.wrong.setdefault(f"{label} {failure.title}", f"{what}\n{sample}")


def explore(url: str, bearer: str, known: list[str]) -> Answers:
    """One run over the whole document, in a process of its own."""
    config = schemathesis.Config.from_dict(configuration(bearer, known))
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=config)
    answers = Answers()
    for event in from_schema(schema).execute():
        answers.see(event)
        if isinstance(event, events.EngineFinished):
            assert event.stop_reason == "completed"
    return answers


@pytest.fixture(scope="module")
def other_process() -> Iterator[Executor]:
    """A process for schemathesis.

    It computes for seconds, and the server must not wait for it.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        yield executor


@pytest.mark.parametrize("role", ["key", "user", "ops"])
async def test_the_document_is_true(
    server: TestServer,
    role: str,
    other_process: Executor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Schemathesis asks many times more than an address or a user may ask in a minute.
    monkeypatch.setattr(server_limits, "AUTH_FAILURES_PER_ADDRESS_PER_MINUTE", 10**9)
    monkeypatch.setattr(server_limits, "REQUESTS_BURST", 10**9)
    monkeypatch.setattr(server_limits, "USER_REQUESTS_BURST", 10**9)
    await grant(server, "5", "k1")
    started = {"kind": "chat"}
    await ask(server, "POST", "/v1/sessions/chat-1/heartbeat", server.token(), json=started)
    bearers = {"key": API_KEY, "user": server.token(), "ops": server.token("ann", scope="ops")}
    answers = await asyncio.get_running_loop().run_in_executor(
        other_process, explore, server.url, bearers[role], ["ann", "chat-1"]
    )
    assert list(answers.wrong.values()) == []

    document = (await ask(server, "GET", "/openapi.json", None)).json()
    del document["paths"]["/openapi.json"]  # whence it has the document, it does not ask
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if f"{method.upper()} {path}" in ENDLESS:
                continue
            statuses = answers.statuses.pop(f"{method.upper()} {path}", set())
            allowed = {name for security in operation["security"] for name in security}
            # An operator has a user's token, and has a user's rights like any other.
            if "user" in allowed and not path.startswith(NOT_FOR_OPERATORS):
                allowed.add("ops")
            may = not allowed or role in allowed
            assert bool(statuses - {401, 403, 405}) == may, (method, path, statuses)
    assert not answers.statuses


async def test_rules_beyond_schemas_belong_to_existing_operations(server: TestServer) -> None:
    document = (await ask(server, "GET", "/openapi.json", None)).json()
    for name in UNSPEAKABLE:
        method, _, path = name.partition(" ")
        assert method.lower() in document["paths"][path]
