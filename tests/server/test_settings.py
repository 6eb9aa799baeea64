"""The environment, read as settings."""

from pathlib import Path

import pytest

from server.runtime.settings import ConfigurationError, load_settings
from tests.fixtures.environment import set_environment

SECRET = "s" * 32

pytestmark = pytest.mark.usefixtures("empty_environment")


def test_defaults_are_those_of_the_specification() -> None:
    settings = load_settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.data_dir == Path("data")
    assert (settings.redis_url, settings.database_url) == (None, None)
    assert settings.partitions == 64
    assert settings.start == "open"
    assert settings.uncovered_ms == 60_000
    assert settings.log_format == "console"
    assert settings.env == "production"
    assert not settings.is_development


def test_everything_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(
        monkeypatch,
        ENV="development",
        DEVELOPMENT_CONFIRMED="1",
        HOST="0.0.0.0",
        PORT="9000",
        DATA_DIR="/tmp/x",
        REDIS_URL="redis://:pw@r:6379/0",
        DATABASE_URL="postgresql://u:pw@p/db",
        RATES="/tmp/rates.toml",
        JWT_SECRET=SECRET,
        JWKS_URL="https://issuer.example/keys",
        JWT_ISSUER="issuer",
        JWT_AUDIENCE="taximeter",
        JWT_USER_CLAIM="email",
        API_KEYS="one, two,,",
        ORIGINS="https://a.example,http://localhost:3000",
        PARTITIONS="8",
        START="prepared",
        UNCOVERED_MS="0",
        LOG_FORMAT="json",
        STREAM_API_KEY="stream",
        STREAM_SECRET_KEY="s1",
        STREAM_API_URL="https://stream.example",
        LIVEKIT_URL="wss://livekit.example",
        LIVEKIT_API_KEY="livekit",
        LIVEKIT_API_SECRET="s2",
        DAILY_API_KEY="daily",
        DAILY_WEBHOOK_SECRET="czM=",
        DAILY_API_URL="https://daily.example/v1",
    )
    settings = load_settings()
    assert (settings.stream_api_key, settings.stream_api_url) == (
        "stream",
        "https://stream.example",
    )
    assert (settings.livekit_api_key, settings.livekit_url) == ("livekit", "wss://livekit.example")
    assert settings.daily_api_url == "https://daily.example/v1"
    secrets = (
        settings.stream_secret_key, settings.livekit_api_secret, settings.daily_api_key,
        settings.daily_webhook_secret,
    )  # fmt: skip
    assert [one.get_secret_value() for one in secrets if one] == ["s1", "s2", "daily", "czM="]
    assert not any(each in repr(settings) for each in ("s1", "s2", "czM="))
    assert settings.is_development
    assert settings.development_confirmed
    assert (settings.host, settings.port, settings.data_dir) == ("0.0.0.0", 9000, Path("/tmp/x"))
    assert settings.redis_url == "redis://:pw@r:6379/0"
    assert settings.database_url == "postgresql://u:pw@p/db"
    assert settings.rates == Path("/tmp/rates.toml")
    assert settings.jwt_secret is not None
    assert settings.jwt_secret.get_secret_value() == SECRET
    assert settings.jwks_url == "https://issuer.example/keys"
    assert (settings.jwt_issuer, settings.jwt_audience) == ("issuer", "taximeter")
    assert settings.jwt_user_claim == "email"
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]
    assert settings.origins == ("https://a.example", "http://localhost:3000")
    assert (settings.partitions, settings.start) == (8, "prepared")
    assert (settings.uncovered_ms, settings.log_format) == (0, "json")


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, JWT_SECRET="", PORT="", API_KEYS="", REDIS_URL="")
    settings = load_settings()
    assert settings.port == 8000
    assert (settings.jwt_secret, settings.api_keys, settings.redis_url) == (None, (), None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ENV", "staging"),
        ("PORT", "eighty"),
        ("PORT", "65536"),
        ("PARTITIONS", "0"),
        ("PARTITIONS", "1025"),
        ("UNCOVERED_MS", "-1"),
        ("UNCOVERED_MS", "3600001"),
        ("START", "closed"),
        ("LOG_FORMAT", "xml"),
        ("ORIGINS", "example.com"),
        ("ORIGINS", "https://example.com/path"),
        ("JWKS_URL", "file:///etc/passwd"),
        ("REDIS_URL", "http://hunter2"),
        ("JWT_USER_CLAIM", "exp"),
        ("API_KEYS", "hunter2 with spaces"),
        ("API_KEYS", "hunter2é"),
        ("DEVELOPMENT_CONFIRMED", "perhaps"),
        ("DATABASE_URL", "mysql://hunter2"),
    ],
)
def test_a_bad_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    set_environment(monkeypatch, **{name: value})
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    (problem,) = caught.value.problems
    assert problem.startswith(f"TAXIMETER_{name}: ")
    assert "hunter2" not in problem


def test_all_bad_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, PORT="x", START="y")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "TAXIMETER_PORT",
        "TAXIMETER_START",
    ]


def test_no_secret_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(
        monkeypatch,
        JWT_SECRET="hunter2",
        API_KEYS="hunter2",
        REDIS_URL="redis://:hunter2@r",
        DATABASE_URL="postgres://u:hunter2@p",
    )
    settings = load_settings()
    assert "hunter2" not in repr(settings) + str(settings)
