"""Adapters are made for the providers that the settings name in full."""

import base64
import threading
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from server.calls.facts import CallRun
from server.calls.providers import CallProviders
from server.runtime.settings import Settings
from server.runtime.start_checks import halves
from tests.calls.fake_stream import API_KEY, SECRET, FakeStream
from tests.calls.site import served

STREAM = {"stream_api_key": "key", "stream_secret_key": SecretStr("secret")}
LIVEKIT = {
    "livekit_url": "wss://p.livekit.cloud", "livekit_api_key": "key",
    "livekit_api_secret": SecretStr("secret"),
}  # fmt: skip
DAILY = {
    "daily_api_key": SecretStr("key"),
    "daily_webhook_secret": SecretStr(base64.b64encode(b"secret").decode()),
}
ALL: dict[str, dict[str, Any]] = {"stream": STREAM, "livekit": LIVEKIT, "daily": DAILY}


def made(**settings: Any) -> CallProviders:
    return CallProviders(Settings(**settings), lambda: 5)


@pytest.mark.usefixtures("empty_environment")
def test_each_provider_that_is_set_up_has_its_adapter() -> None:
    before = threading.active_count()
    assert made().adapters == {}
    for name, settings in ALL.items():
        providers = made(**settings)
        assert {found: adapter.name for found, adapter in providers.adapters.items()} == {
            name: name
        }
        providers.close()
    providers = made(**STREAM, **LIVEKIT, **DAILY)
    assert list(providers.adapters) == list(ALL)
    assert [each.has_duration for each in providers.adapters.values()] == [True, False, True]
    providers.close()
    assert threading.active_count() == before


@pytest.mark.usefixtures("empty_environment")
@pytest.mark.parametrize("name", ALL)
def test_a_provider_that_is_set_up_in_part_is_a_reason_not_to_start(name: str) -> None:
    settings = ALL[name]
    assert halves(Settings(**settings)) == halves(Settings()) == []
    for left_out in settings:
        rest = {field: value for field, value in settings.items() if field != left_out}
        assert made(**rest).adapters == {}
        (problem,) = halves(Settings(**rest))
        assert f"TAXIMETER_{left_out.upper()}" in problem


@pytest.mark.usefixtures("empty_environment")
@pytest.mark.parametrize(
    "wrong",
    [
        {"stream_api_url": "ftp://x"}, {"stream_api_url": "https://"}, {"daily_api_url": "x"},
        {"livekit_url": "livekit.cloud"}, {"livekit_url": "https://x?a=b"},
        {"daily_webhook_secret": "no base64!"}, {"stream_api_key": ""},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Settings(**wrong)  # type: ignore[arg-type]


@pytest.mark.usefixtures("empty_environment")
@pytest.mark.parametrize("is_trusted", [False, True])
async def test_what_streams_clients_may_write_names_no_payer_unless_it_is_trusted(
    is_trusted: bool,
) -> None:
    fake = FakeStream(1_790_000_000_000)
    run = fake.start("default:maths", payer="the headmaster", org="acme")
    (started,) = fake.take()
    with served(fake) as site:
        data = {"stream_custom_data": "trusted"} if is_trusted else {}
        keys = {"stream_api_key": API_KEY, "stream_secret_key": SecretStr(SECRET)}
        providers = made(**keys, stream_api_url=site.url, **data)
        adapter = providers.adapters["stream"]
        (fact,) = adapter.facts(started.body)
        truth = await adapter.sweep(CallRun(call=run.call, call_session=run.session))
        providers.close()
    expected = run.custom if is_trusted else {}
    assert fact.custom == truth.custom == expected
