"""Types of fields: one definition for the check and for the schema."""

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.wire import fields

# A slow machine is no failure.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@CALM
@given(st.text(max_size=130))
def test_ids_have_one_definition(text: str) -> None:
    try:
        msgspec.convert(text, fields.SessionId)
    except msgspec.ValidationError:
        assert not fields.is_id(text)
    else:
        assert fields.is_id(text)
