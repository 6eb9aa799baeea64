"""Secrets: required outside development; made and kept in development."""

import contextlib
import os
import secrets
from pathlib import Path

import structlog
from pydantic import SecretStr

from server import limits as server_limits
from server.runtime.settings import PREFIX, ConfigurationError, Settings
from server.runtime.start_checks import exposures, forgeries, halves, weaknesses

log = structlog.get_logger("taximeter.config")


def with_secrets(settings: Settings) -> Settings:
    """``settings`` with a way to check tokens, and an API key.

    PROTOCOL section 3: "In development, started without secrets, the server makes them, keeps them
    in DATA_DIR and says so; outside development it refuses to start without them."
    """
    made: dict[str, object] = {}
    problems = [
        *exposures(settings),
        *weaknesses(settings),
        *halves(settings),
        *forgeries(settings),
    ]
    if settings.jwt_secret is None and settings.jwks_url is None:
        if settings.is_development:
            made["jwt_secret"] = SecretStr(_keep_secret(settings.data_dir, "jwt-secret"))
        else:
            length_min = server_limits.JWT_SECRET_BYTES_MIN
            problems.append(
                f"set {PREFIX}JWT_SECRET (at least {length_min} random characters, "
                f"shared with the issuer of tokens) or {PREFIX}JWKS_URL (where the issuer's "
                "public keys are)"
            )
    if not settings.api_keys:
        if settings.is_development:
            made["api_keys"] = (SecretStr(_keep_secret(settings.data_dir, "api-key")),)
        else:
            problems.append(
                f"set {PREFIX}API_KEYS (random keys of the backends, separated by commas)"
            )
    if settings.jwks_url is not None and not settings.is_development:
        # Without both, the server would accept a token that the issuer made for another
        # application.
        problems += [
            f"set {PREFIX}{name} (the claim `{claim}` of this application's tokens), which "
            f"{PREFIX}JWKS_URL needs"
            for name, claim, value in (
                ("JWT_ISSUER", "iss", settings.jwt_issuer),
                ("JWT_AUDIENCE", "aud", settings.jwt_audience),
            )
            if value is None
        ]
    if problems:
        problems.append(f"or set {PREFIX}ENV=development to have secrets made for a first look")
        raise ConfigurationError(*problems)
    return settings.model_copy(update=made) if made else settings


def _keep_secret(data_dir: Path, name: str) -> str:
    """The secret in ``data_dir`` under ``name``; made if missing."""
    path = data_dir / name
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _make_secret(path)
            log.warning("made a secret for development and keep it", path=str(path))
        secret = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"cannot keep a secret in {path}: {error.strerror}") from None
    if not secret:
        raise ConfigurationError(f"{path} is empty: delete it, and a secret is made anew")
    return secret


def _make_secret(path: Path) -> None:
    """Writes a new secret completely or not at all.

    Only its owner may read it. Two processes may start at once: each writes its own file, and the
    first to link its file to ``path`` decides the secret.
    """
    draft = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
