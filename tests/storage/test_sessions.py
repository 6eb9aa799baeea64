"""Sessions in the record: a preparation's fingerprint, and the session's owner."""

from typing import Any

import msgspec
import pytest

from storage.rows.sessions import SessionPrepared, SessionRow
from tests.storage.examples import START, TENANT, TERMS

PREPARED = SessionPrepared(
    TENANT, "s1", "ann", "acme", "ann", "advisor", "recording", TERMS, START + 1, {"a": 1}
)


def row(state: Any = "prepared", **changes: Any) -> SessionRow:
    given: dict[str, Any] = {
        "tenant": TENANT, "session_id": "s1", "state": state, "kind": "recording",
        "user_id": "ann", "org_id": "acme", "account_id": "ann", "counterpart_id": "advisor",
        "started_at": None, "ended_at": None, "reason": None, "limit_name": None, "elapsed_ms": 0,
        "free_ms": 0, "billed_ms": 0, "minutes": 0, "charged_micros": 0, "uncovered_ms": 0,
        "segments": [], "gaps": [], "terms": TERMS, "metadata": {"a": 1}, "expires_at": START + 1,
    }  # fmt: skip
    return SessionRow(**{**given, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"user_id": "bob"},
        {"account_id": "bob"},
        {"counterpart_id": None},
        {"terms": msgspec.structs.replace(TERMS, price_micros=2)},
        {"expires_at": START + 2},
    ],
)
def test_another_preparation_has_another_fingerprint(changes: dict[str, Any]) -> None:
    assert PREPARED.preparation == msgspec.structs.replace(PREPARED).preparation
    assert msgspec.structs.replace(PREPARED, **changes).preparation != PREPARED.preparation
    assert len(PREPARED.preparation) == 32


def test_a_preparation_excludes_metadata() -> None:
    other = msgspec.structs.replace(PREPARED, metadata=None)
    assert other.preparation == PREPARED.preparation


def test_only_a_session_that_has_not_started_is_a_preparation() -> None:
    assert row().prepared == PREPARED
    assert row("live", started_at=START).prepared is None


def test_a_session_that_started_has_an_identity() -> None:
    identity = row("live", started_at=START, is_reported=True).identity
    assert (identity.tenant, identity.session_id, identity.started_at) == (TENANT, "s1", START)
    assert (identity.terms, identity.metadata, identity.is_reported) == (TERMS, {"a": 1}, True)
    assert identity.free_key is None
