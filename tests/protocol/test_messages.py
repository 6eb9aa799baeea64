"""Messages have the fields of the specification: described, nullable or optional."""

import json

import msgspec
from hypothesis import HealthCheck, settings

from protocol.wire import codec, messages
from tests.protocol.wire_examples import SESSION, STOPPED

# A slow machine is no failure.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_nullable_fields_are_written_and_optional_ones_left_out() -> None:
    written = json.loads(codec.encode(SESSION))
    assert next(iter(written)) == "type"
    assert written["type"] == "session"
    assert (written["limit"], written["remaining_ms"], written["ends_at"]) == (None, None, None)
    assert (written["limits"], written["speed"]) == ([], 1)
    assert "id" not in written
    assert written["missed"][0]["type"] == "stopped"
    receipt = written["missed"][0]["receipt"]
    assert receipt["counterpart_id"] is None
    assert "provider_ms" not in receipt
    answered = json.loads(codec.encode(msgspec.structs.replace(SESSION, id=0, speed=10)))
    assert (answered["id"], answered["speed"]) == (0, 10)


def test_optional_fields_are_left_out() -> None:
    credit = messages.Credit(
        account_id="a", credits="1", delta="-0.5", reason="adjust", entry_id="e"
    )
    assert "operation" not in json.loads(codec.encode(credit))
    stopped = msgspec.structs.replace(STOPPED, reason="client", limit=None)
    assert "limit" not in json.loads(codec.encode(stopped))


NAMES = {
    "welcome": "user_id org_id account_id credits node server_time_at ping_ms expires_at",
    "session": "session_id kind state seq started_at elapsed_ms free_remaining_ms paid credits "
    "credits_per_minute limit remaining_ms ends_at limits missed server_time_at speed",
    "tick": "session_id elapsed_ms free_remaining_ms paid credits remaining_ms limit",
    "free_time": "session_id seq free_remaining_ms paid",
    "credit": "account_id credits delta reason operation entry_id",
    "limit_warning": "session_id seq limit remaining_ms threshold_ms",
    "limit_cleared": "session_id seq limit remaining_ms",
    "limit_reached": "session_id seq limit stopped_at elapsed_ms grace_ms",
    "usage": "month member_used_ms member_limit_ms org_used_ms org_limit_ms",
    "minute": "session_id minute seconds credits",
    "stopped": "session_id seq reason limit receipt",
    "reconnect": "after_ms",
    "pong": "server_time_at",
    "error": "code message retryable limit retry_after_ms",
}


def test_the_fields_are_those_of_the_specification() -> None:
    assert {
        str(message.__struct_config__.tag): set(message.__struct_fields__) - {"id"}
        for message in messages.SERVER_MESSAGES
    } == {name: set(names.split()) for name, names in NAMES.items()}
    assert " ".join(messages.Receipt.__struct_fields__) == (
        "session_id kind user_id org_id counterpart_id started_at ended_at reason elapsed_ms "
        "free_ms billed_ms minutes credits segments gaps provider_ms difference_ms "
        "corrections"
    )


def test_the_schema_describes_every_field() -> None:
    types = [*messages.CLIENT_MESSAGES, *messages.SERVER_MESSAGES]
    _, components = msgspec.json.schema_components(types)
    for name, schema in components.items():
        assert schema["description"], name
        for field, definition in schema["properties"].items():
            described = [definition, *definition.get("anyOf", [])]
            assert (
                field == "type"
                or "$ref" in definition
                or any("description" in one for one in described)
            ), f"{name}.{field}"
