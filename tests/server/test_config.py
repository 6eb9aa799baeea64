"""The environment, the secrets of a first look, the rate card's file."""

import os
import resource
import stat
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from server.runtime.settings import (
    JWT_SECRET_BYTES_MIN,
    ConfigurationError,
    Settings,
    _make_secret,
    doubts,
    load_rate_card,
    load_settings,
    raise_descriptor_limit,
    with_secrets,
)

SECRET = "s" * 32
KEY = "k" * 20


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("TAXIMETER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def set_environment(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"TAXIMETER_{name}", value)


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
    )
    settings = load_settings()
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


# --- Secrets


def test_outside_development_secrets_are_asked_for() -> None:
    with pytest.raises(ConfigurationError) as caught:
        with_secrets(Settings())
    text = str(caught.value)
    for name in ("TAXIMETER_JWT_SECRET", "TAXIMETER_JWKS_URL", "TAXIMETER_API_KEYS"):
        assert f"set {name}" in text or f"or {name}" in text
    assert not Path("data").exists()


@pytest.mark.parametrize(
    ("values", "asked"),
    [
        ({"JWT_SECRET": SECRET}, "API_KEYS"),
        ({"JWKS_URL": "https://i.example"}, "API_KEYS"),
        ({"API_KEYS": KEY}, "JWT_SECRET"),
        ({"API_KEYS": KEY, "JWKS_URL": "https://i.example"}, "JWT_ISSUER"),
        ({"API_KEYS": KEY, "JWKS_URL": "https://i.example", "JWT_ISSUER": "i"}, "JWT_AUDIENCE"),
        ({"API_KEYS": KEY, "JWKS_URL": "https://i.example", "JWT_AUDIENCE": "a"}, "JWT_ISSUER"),
        (
            {"API_KEYS": KEY, "JWKS_URL": "https://i.example", "JWT_SECRET": SECRET},
            "JWT_AUDIENCE",
        ),
    ],
)
def test_each_secret_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], asked: str
) -> None:
    set_environment(monkeypatch, **values)
    with pytest.raises(ConfigurationError, match=f"set TAXIMETER_{asked}"):
        with_secrets(load_settings())


@pytest.mark.parametrize(
    "door",
    [
        {"JWT_SECRET": SECRET},
        {"JWKS_URL": "https://i.example", "JWT_ISSUER": "i", "JWT_AUDIENCE": "a"},
        {"JWKS_URL": "https://i.example", "ENV": "development"},
    ],
)
def test_what_is_set_is_left_alone(monkeypatch: pytest.MonkeyPatch, door: dict[str, str]) -> None:
    set_environment(monkeypatch, API_KEYS=KEY, **door)
    settings = load_settings()
    assert with_secrets(settings) is settings


def test_in_development_secrets_are_made_kept_and_announced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_environment(monkeypatch, ENV="development", DATA_DIR=str(tmp_path / "a" / "data"))
    with capture_logs() as logs:
        settings = with_secrets(load_settings())
    assert settings.jwt_secret is not None
    made = settings.jwt_secret.get_secret_value()
    key = settings.api_keys[0].get_secret_value()
    assert len(made) >= JWT_SECRET_BYTES_MIN
    assert made != key
    files = sorted(settings.data_dir.iterdir())
    assert [file.name for file in files] == ["api-key", "jwt-secret"]
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    assert {entry["path"] for entry in logs} == {str(file) for file in files}
    assert made not in str(logs)
    assert doubts(settings) == []

    with capture_logs() as logs:
        again = with_secrets(load_settings())
    assert again == settings
    assert logs == []


def test_the_first_of_two_processes_decides(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    _make_secret(path)
    first = path.read_text()
    _make_secret(path)
    assert path.read_text() == first
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_keeps_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    set_environment(monkeypatch, ENV="development", DATA_DIR=str(blocked))
    with pytest.raises(ConfigurationError, match="cannot keep a secret in"):
        with_secrets(load_settings())


def test_an_empty_secret_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "jwt-secret").write_text("\n")
    set_environment(monkeypatch, ENV="development", DATA_DIR=str(tmp_path))
    with pytest.raises(ConfigurationError, match="is empty"):
        with_secrets(load_settings())


# --- Doubts


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


# --- The rate card


def test_the_card_of_the_repository_is_the_default() -> None:
    card = load_rate_card()
    assert load_rate_card(Settings().rates) == card
    assert set(card.kinds) == {"chat", "recording", "chat-demo", "recording-demo"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "TAXIMETER_RATES: cannot read .*card.toml: No such file"),
        (b"kinds = [", "card.toml: not TOML"),
        (b"\xff", "card.toml: not TOML"),
        (b"[kinds.chat]", "card.toml: kinds.chat.credits_per_minute: missing"),
    ],
)
def test_a_card_that_cannot_be_used(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "card.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=problem):
        load_rate_card(path)


# --- Descriptors


class Limit:
    """Stands in for the kernel's limit of open files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> None:
        self.value = (soft, hard)
        monkeypatch.setattr(resource, "getrlimit", lambda _: self.value)
        monkeypatch.setattr(resource, "setrlimit", lambda _, value: setattr(self, "value", value))


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "sockets"),
    [
        (1_024, 4_096, 4_096, 4_096 - 128),
        (1_024, 1_048_576, 65_536, 65_536 - 128),
        (1_024, resource.RLIM_INFINITY, 65_536, 65_536 - 128),
        (100_000, 1_048_576, 100_000, 100_000 - 128),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, resource.RLIM_INFINITY, 65_536 - 128),
        (64, 64, 64, 1),
    ],
)
def test_the_descriptor_limit_is_raised(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, raised: int, sockets: int
) -> None:
    limit = Limit(monkeypatch, soft, hard)
    assert raise_descriptor_limit() == sockets
    assert limit.value == (raised, hard)
