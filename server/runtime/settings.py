"""The configuration: environment variables with the prefix ``TAXIMETER_``, and the rate card.

PROTOCOL section 3 names them. What is wrong is said all at once, by the name of the
variable and without its value, and before anything is started.
"""

import contextlib
import os
import resource
import secrets
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import structlog
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from protocol import limits
from protocol.rate_card import RateCard, RateCardError, parse_rate_card
from server.runtime.loopback import is_local_database, is_local_redis, is_loopback
from server.runtime.origins import parse_entry
from storage.redis.cluster import is_cluster, nodes_of

PREFIX = "TAXIMETER_"
RATES_DEFAULT = Path(__file__).parents[2] / "rates.toml"

# RFC 7518 section 3.2: "A key of the same size as the hash output (for instance, 256
# bits for "HS256") or larger MUST be used with this algorithm."
JWT_SECRET_BYTES_MIN = 32
API_KEY_CHARACTERS_MIN = 20

CLAIMS_OF_THEIR_OWN = frozenset(
    {"iss", "aud", "exp", "nbf", "iat", "org", "scope", "sessions", "kinds", "counterparts"}
)

log = structlog.get_logger("taximeter.config")


class ConfigurationError(Exception):
    """The server cannot start like this. ``problems`` has one sentence for each reason."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class Settings(BaseSettings):
    """Everything that can be set, as it was set. Read with :func:`load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="ignore"
    )

    env: Literal["production", "development"] = "production"
    development_confirmed: bool = False
    """In development, that others may reach this server or its data."""
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
    """Origins of pages elsewhere that may talk to this server, as browsers send them, or
    ``https://*.example.com`` for all names below a domain; ``*`` for all."""
    partitions: int = Field(default=limits.PARTITIONS_DEFAULT, ge=1, le=limits.PARTITIONS_MAX)
    start: Literal["open", "prepared"] = "open"
    uncovered_ms: int = Field(default=limits.UNCOVERED_MS_DEFAULT, ge=0, le=limits.UNCOVERED_MS_MAX)
    log_format: Literal["console", "json"] = "console"
    metrics_port: int | None = Field(default=None, ge=1, le=65_535 - limits.WORKERS_MAX)
    """Where a process is asked for its health and metrics, the first one of ``--workers``
    here and each further one a port higher; None: nowhere but on ``port``."""

    @property
    def is_development(self) -> bool:
        """Whether secrets may be made up and shortcuts taken."""
        return self.env == "development"

    @field_validator("api_keys", "origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """A comma separated list; empty parts are nobody's key."""
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
            raise ValueError("is a claim that says something else; name the user's")
        return name

    @field_validator("jwks_url")
    @classmethod
    def _check_jwks_url(cls, url: str | None) -> str | None:
        if url is not None and urlsplit(url).scheme not in ("http", "https"):
            raise ValueError("must be an http or https URL")
        return url

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

    Commands that check tokens or make them then need :func:`with_secrets`, once the log is
    set up; the flusher and the migrations know no secret.
    """
    try:
        return Settings()
    except ValidationError as error:
        problems = (
            f"{PREFIX}{str(part['loc'][0]).upper()}: {part['msg']}"
            for part in error.errors(include_input=False, include_url=False)
        )
        raise ConfigurationError(*problems) from None


def with_secrets(settings: Settings) -> Settings:
    """``settings`` with a way to check tokens, and an API key.

    PROTOCOL section 3: "In development, started without secrets, the server makes them,
    keeps them in DATA_DIR and says so; outside development it refuses to start without
    them."
    """
    made: dict[str, object] = {}
    problems = [*exposures(settings), *weaknesses(settings)]
    if settings.jwt_secret is None and settings.jwks_url is None:
        if settings.is_development:
            made["jwt_secret"] = SecretStr(_keep_secret(settings.data_dir, "jwt-secret"))
        else:
            problems.append(
                f"set {PREFIX}JWT_SECRET (at least {JWT_SECRET_BYTES_MIN} random characters, "
                f"shared with whoever issues tokens) or {PREFIX}JWKS_URL (where the issuer's "
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
        # Without both, a token that the issuer made for any other application is good here.
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


def exposures(settings: Settings) -> list[str]:
    """Why development is refused here: others could reach the server, or the data is others'.

    In development ``/demo/token`` gives tokens to anybody who asks, and migrations are applied
    at start. Empty outside development, and where ``TAXIMETER_DEVELOPMENT_CONFIRMED`` is set.
    """
    if not settings.is_development or settings.development_confirmed:
        return []
    confirm = (
        f"set {PREFIX}ENV=production, or {PREFIX}DEVELOPMENT_CONFIRMED=1 if tokens and credits "
        "for anybody are meant"
    )
    found = []
    if not is_loopback(settings.host):
        found.append(f"{PREFIX}HOST lets others reach a server in development: {confirm}")
    for name, url, is_local in (
        ("REDIS_URL", settings.redis_url, is_local_redis),
        ("DATABASE_URL", settings.database_url, is_local_database),
    ):
        if url is not None and not is_local(url):
            found.append(f"{PREFIX}{name} is not on this machine, in development: {confirm}")
    return found


def weaknesses(settings: Settings) -> list[str]:
    """Secrets and keys that can be guessed; outside development they are refused."""
    if settings.is_development:
        return []
    return _short_secrets(settings)


def _short_secrets(settings: Settings) -> list[str]:
    found = []
    if settings.jwt_secret is not None:
        length = len(settings.jwt_secret.get_secret_value().encode())
        if length < JWT_SECRET_BYTES_MIN:
            found.append(
                f"{PREFIX}JWT_SECRET has {length} bytes: with less than {JWT_SECRET_BYTES_MIN} "
                "it can be guessed from any token"
            )
    if any(len(key.get_secret_value()) < API_KEY_CHARACTERS_MIN for key in settings.api_keys):
        found.append(f"{PREFIX}API_KEYS has a key of less than {API_KEY_CHARACTERS_MIN} characters")
    return found


def doubts(settings: Settings) -> list[str]:
    """What can be started like this but should not stay so; for the log at start."""
    found = _short_secrets(settings)
    if not settings.is_development:
        if settings.jwks_url is not None and settings.jwks_url.startswith("http://"):
            found.append(f"{PREFIX}JWKS_URL is http: whoever is in between can issue tokens")
        if "*" in settings.origins:
            found.append(f"{PREFIX}ORIGINS lets pages of any origin in")
    known = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            found.append(f"{name} is not a setting{hint}")
    return found


def load_rate_card(path: Path = RATES_DEFAULT) -> RateCard:
    """The rate card in the TOML file ``path``; raises :class:`ConfigurationError`."""
    try:
        return parse_rate_card(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigurationError(f"{PREFIX}RATES: cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not TOML: {error}") from None
    except RateCardError as error:
        raise ConfigurationError(*(f"{path}: {problem}" for problem in error.problems)) from None


def raise_descriptor_limit(wanted: int = limits.DESCRIPTORS_WANTED) -> int:
    """Raises the soft limit of open files towards ``wanted``; returns how many connections fit.

    PITFALLS: over the descriptor limit accept loops thrash, so the server reads the limit
    at start and refuses early, with 503. A limit that is higher already stays.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        soft = wanted
    return max(1, soft - limits.DESCRIPTORS_RESERVED)


def _keep_secret(data_dir: Path, name: str) -> str:
    """The secret kept in ``data_dir`` under ``name``; made when there is none yet."""
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
    """Writes a new secret that only its owner reads, whole or not at all.

    Two processes may start at once: both write a file of their own, and the first to
    link it to ``path`` decides the secret.
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
