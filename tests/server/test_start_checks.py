"""Unsafe settings are refused, or logged."""

from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from server.runtime.secrets import with_secrets
from server.runtime.settings import ConfigurationError, Settings, load_settings
from server.runtime.start_checks import doubts, exposures, forgeries
from tests.fixtures.environment import set_environment

SECRET = "s" * 32

KEY = "k" * 20

SECRET_GIVEN, KEY_GIVEN = SecretStr(SECRET), SecretStr(KEY)

pytestmark = pytest.mark.usefixtures("empty_environment")


def test_doubts_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(
        monkeypatch,
        JWT_SECRET="short",
        API_KEYS="short",
        JWKS_URL="http://issuer.example",
        ORIGINS="*",
        REDIS_URI="redis://r",
    )
    found = doubts(load_settings())
    assert len(found) == 5
    assert "has 5 bytes" in found[0]
    assert found[-1] == "TAXIMETER_REDIS_URI is not a setting: did you mean TAXIMETER_REDIS_URL?"


def test_there_may_be_no_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, JWT_SECRET=SECRET, API_KEYS=KEY, JWKS_URL="https://issuer.example")
    assert doubts(load_settings()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", "0.0.0.0"), ("host", "app.example"), ("redis_url", "redis://cache.example"),
        ("database_url", "postgresql://db.example/db"),
    ],
)  # fmt: skip
def test_development_where_others_are_is_confirmed_or_refused(name: str, value: str) -> None:
    given: dict[str, Any] = {
        "env": "development",
        "jwt_secret": SECRET_GIVEN,
        "api_keys": (KEY_GIVEN,),
        name: value,
    }
    with pytest.raises(ConfigurationError) as caught:
        with_secrets(Settings(**given))
    (problem,) = caught.value.problems[:1]
    assert f"TAXIMETER_{name.upper()}" in problem
    assert "TAXIMETER_DEVELOPMENT_CONFIRMED=1" in problem
    assert value not in problem
    confirmed = Settings(**given, development_confirmed=True)
    assert with_secrets(confirmed) is confirmed
    production = Settings(**{**given, "env": "production"})
    assert with_secrets(production) is production


def test_a_given_secret_is_fine_on_a_loopback_host() -> None:
    given = Settings(env="development", jwt_secret=SECRET_GIVEN, api_keys=(KEY_GIVEN,))
    assert with_secrets(given) is given
    assert exposures(Settings(env="development", host="localhost")) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("jwt_secret", SecretStr("s" * 31)), ("api_keys", (KEY_GIVEN, SecretStr("k" * 19)))],
)
def test_outside_development_short_secrets_are_refused(name: str, value: object) -> None:
    given: dict[str, Any] = {"jwt_secret": SECRET_GIVEN, "api_keys": (KEY_GIVEN,), name: value}
    with pytest.raises(ConfigurationError, match=f"TAXIMETER_{name.upper()}"):
        with_secrets(Settings(**given))
    assert with_secrets(Settings(**given, env="development"))


@pytest.mark.parametrize(
    ("proxies", "refused"),
    [
        (None, True),
        ("", True),
        (" , ", True),
        ("*", True),
        ("10.0.0.1, *", True),
        ("0.0.0.0/0", True),
        ("::/0", True),
        ("10.0.0.1", False),
        ("10.0.0.0/8, ::1", False),
    ],
)
def test_a_header_that_names_operators_needs_named_proxies(
    monkeypatch: pytest.MonkeyPatch, proxies: str | None, refused: bool
) -> None:
    if proxies is None:
        monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    else:
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", proxies)
    assert bool(forgeries(Settings(ops_user_header="X-Forwarded-User"))) is refused
    assert forgeries(Settings()) == []


@pytest.mark.parametrize("name", ["Authorization", "cookie", "X-Forwarded-For", "two words", "a:b"])
def test_a_header_with_another_meaning_names_no_operator(name: str) -> None:
    with pytest.raises(ValidationError):
        Settings(ops_user_header=name)
