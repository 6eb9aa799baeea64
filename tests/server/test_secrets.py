"""Secrets are required outside development, and generated in development."""

import stat
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from server import limits as server_limits
from server.runtime.secrets import _make_secret, with_secrets
from server.runtime.settings import ConfigurationError, Settings, load_settings
from server.runtime.start_checks import doubts
from tests.fixtures.environment import set_environment

SECRET = "s" * 32

KEY = "k" * 20

pytestmark = pytest.mark.usefixtures("empty_environment")


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
    "credentials",
    [
        {"JWT_SECRET": SECRET},
        {"JWKS_URL": "https://i.example", "JWT_ISSUER": "i", "JWT_AUDIENCE": "a"},
        {"JWKS_URL": "https://i.example", "ENV": "development"},
    ],
)
def test_what_is_set_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, credentials: dict[str, str]
) -> None:
    set_environment(monkeypatch, API_KEYS=KEY, **credentials)
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
    assert len(made) >= server_limits.JWT_SECRET_BYTES_MIN
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
