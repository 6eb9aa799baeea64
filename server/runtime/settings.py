"""The configuration: environment variables with the prefix ``TAXIMETER_``.

PROTOCOL section 3 names them. All errors are reported at once, before anything is started, by the
name of the variable and without its value.
"""

import base64
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from protocol import limits
from server import limits as server_limits
from server.runtime.origins import parse_entry
from storage.redis.cluster import is_cluster, nodes_of

PREFIX = "TAXIMETER_"

RATES_DEFAULT = Path(__file__).parents[2] / "rates.toml"

CLAIMS_OF_THEIR_OWN = frozenset(
    {"iss", "aud", "exp", "nbf", "iat", "org", "scope", "sessions", "kinds", "counterparts"}
)

HEADERS_OF_OTHERS = frozenset(
    {
        "authorization",
        "cookie",
        "host",
        "origin",
        "x-csrf-token",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
    }
)
"""Headers that clients send for other purposes."""
_HEADER_NAME = re.compile(r"[a-z0-9-]{1,64}")


class ConfigurationError(Exception):
    """The server cannot start; ``problems`` has one sentence for each reason."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class Settings(BaseSettings):
    """All settings, as they were set; read them with :func:`load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="ignore"
    )

    env: Literal["production", "development"] = "production"
    development_confirmed: bool = False
    """Confirms, in development, that others may reach this server or its data."""
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    data_dir: Path = Path("data")
    redis_url: str | None = Field(default=None, repr=False)
    """None: the embedded Redis, kept in ``data_dir``."""
    database_url: str | None = Field(default=None, repr=False)
    """None: the embedded Postgres, kept in ``data_dir``."""
    rates: Path = RATES_DEFAULT
    jwt_secret: SecretStr | None = None
    jwks_url: str | None = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    jwt_user_claim: str = Field(default="sub", min_length=1, max_length=256)
    """The claim that names the user."""
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Origins of pages elsewhere that may use this server, as browsers send them, or
    ``https://*.example.com`` for all names below a domain; ``*`` for all."""
    partitions: int = Field(
        default=server_limits.PARTITIONS_DEFAULT, ge=1, le=server_limits.PARTITIONS_MAX
    )
    start: Literal["open", "prepared"] = "open"
    uncovered_ms: int = Field(
        default=limits.UNCOVERED_MS_DEFAULT, ge=0, le=server_limits.UNCOVERED_MS_MAX
    )
    stream_api_key: str | None = Field(default=None, min_length=1)
    stream_secret_key: SecretStr | None = None
    stream_api_url: str = "https://video.stream-io-api.com"
    stream_custom_data: Literal["ignored", "trusted"] = "ignored"
    """Whether a call's custom data say whose it is. Stream lets a client who may create or update a
    call write them, and so name another payer."""
    livekit_url: str | None = None
    """Of the project or server; LiveKit shows it with ``wss``, which is read as https."""
    livekit_api_key: str | None = Field(default=None, min_length=1)
    livekit_api_secret: SecretStr | None = None
    daily_api_key: SecretStr | None = None
    daily_webhook_secret: SecretStr | None = None
    """The webhook's `hmac`, in base64 as Daily shows it."""
    daily_api_url: str = "https://api.daily.co/v1"
    log_format: Literal["console", "json"] = "console"
    ops_user_header: str | None = None
    """The header in which a trusted proxy names the operator; None: none does."""
    metrics_port: int | None = Field(default=None, ge=1, le=65_535 - server_limits.WORKERS_MAX)
    """Port for the health and metrics of a process: the first one of ``--workers`` uses this port,
    and each further one the next. None: only ``port`` has them."""

    @property
    def is_development(self) -> bool:
        """Whether secrets may be made up and shortcuts taken."""
        return self.env == "development"

    @field_validator("api_keys", "origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """The parts of a comma separated list.

        Empty parts are dropped, so that none becomes a key.
        """
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(parse_entry(origin) for origin in origins)

    @field_validator("api_keys")
    @classmethod
    def _check_api_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in keys:
            text = key.get_secret_value()
            if not (text.isascii() and text.isprintable()) or " " in text:
                raise ValueError(
                    "a key must be printable ASCII without spaces, as headers carry it"
                )
            if len(text) > limits.TOKEN_CHARACTERS_MAX:
                raise ValueError(f"a key has over {limits.TOKEN_CHARACTERS_MAX} characters")
        return keys

    @field_validator("jwt_user_claim")
    @classmethod
    def _check_user_claim(cls, name: str) -> str:
        if name in CLAIMS_OF_THEIR_OWN:
            raise ValueError("is a claim with another meaning; name the user's")
        return name

    @field_validator("ops_user_header")
    @classmethod
    def _check_user_header(cls, name: str | None) -> str | None:
        if name is None:
            return None
        lower = name.strip().lower()
        if _HEADER_NAME.fullmatch(lower) is None or lower in HEADERS_OF_OTHERS:
            raise ValueError("must be the name of a header of its own, such as X-Forwarded-User")
        return lower

    @field_validator("jwks_url")
    @classmethod
    def _check_jwks_url(cls, url: str | None) -> str | None:
        if url is not None and urlsplit(url).scheme not in ("http", "https"):
            raise ValueError("must be an http or https URL")
        return url

    @field_validator("stream_api_url", "daily_api_url")
    @classmethod
    def _check_rest_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ValueError("must be an http or https URL")
        return url

    @field_validator("livekit_url")
    @classmethod
    def _check_livekit_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https", "ws", "wss") or not parts.hostname or parts.query:
            raise ValueError("must be an http, https, ws or wss URL")
        return url

    @field_validator("daily_webhook_secret")
    @classmethod
    def _check_webhook_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            try:
                base64.b64decode(secret.get_secret_value(), validate=True)
            except ValueError:
                raise ValueError("must be base64, as Daily shows it") from None
        return secret

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: str | None) -> str | None:
        if url is None or urlsplit(url).scheme in ("redis", "rediss", "unix"):
            return url
        if not is_cluster(url):
            raise ValueError("must begin with redis://, rediss:// or unix://, or redis+cluster://")
        try:
            nodes_of(url)
        except ValueError as error:
            raise ValueError("write redis+cluster://host:port,host:port") from error
        return url

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, url: str | None) -> str | None:
        if url is not None and urlsplit(url).scheme not in ("postgres", "postgresql"):
            raise ValueError("must begin with postgresql://")
        return url


def load_settings() -> Settings:
    """The settings of this process, from its environment; raises :class:`ConfigurationError`.

    Commands that check or make tokens then need :func:`with_secrets`, once the log is set up; the
    flusher and the migrations know no secret.
    """
    try:
        return Settings()
    except ValidationError as error:
        problems = (
            f"{PREFIX}{str(part['loc'][0]).upper()}: {part['msg']}"
            for part in error.errors(include_input=False, include_url=False)
        )
        raise ConfigurationError(*problems) from None
