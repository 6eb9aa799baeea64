"""Checks of the settings: refusals of the start, and warnings.

They concern what the settings expose to others.
"""

import os
from difflib import get_close_matches

from server import limits as server_limits
from server.runtime.loopback import is_local_database, is_local_redis, is_loopback
from server.runtime.settings import PREFIX, Settings


def exposures(settings: Settings) -> list[str]:
    """Reasons to refuse development here.

    Others could reach the server, or the data is on another machine. In development ``/demo/token``
    gives tokens to anyone who asks, and migrations are applied at start. Empty outside development,
    and where ``TAXIMETER_DEVELOPMENT_CONFIRMED`` is set.
    """
    if not settings.is_development or settings.development_confirmed:
        return []
    confirm = (
        f"set {PREFIX}ENV=production, or {PREFIX}DEVELOPMENT_CONFIRMED=1 if tokens and credits "
        "for anyone are intended"
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
    """Guessable secrets and keys; outside development they prevent the start."""
    if settings.is_development:
        return []
    return _short_secrets(settings)


def _short_secrets(settings: Settings) -> list[str]:
    found = []
    if settings.jwt_secret is not None:
        length = len(settings.jwt_secret.get_secret_value().encode())
        length_min = server_limits.JWT_SECRET_BYTES_MIN
        if length < length_min:
            found.append(
                f"{PREFIX}JWT_SECRET has {length} bytes: with less than {length_min} "
                "it can be guessed from any token"
            )
    characters_min = server_limits.API_KEY_CHARACTERS_MIN
    if any(len(key.get_secret_value()) < characters_min for key in settings.api_keys):
        found.append(f"{PREFIX}API_KEYS has a key of less than {characters_min} characters")
    return found


CALL_PROVIDERS = (
    ("STREAM_API_KEY", "STREAM_SECRET_KEY"),
    ("LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET"),
    ("DAILY_API_KEY", "DAILY_WEBHOOK_SECRET"),
)
"""Settings that a call provider needs together."""


def halves(settings: Settings) -> list[str]:
    """Call providers that are set up in part.

    Such a provider would neither be heard nor asked.
    """
    found = []
    for names in CALL_PROVIDERS:
        missing = [name for name in names if getattr(settings, name.lower()) is None]
        if missing and len(missing) < len(names):
            present = next(name for name in names if name not in missing)
            found += [f"set {PREFIX}{name}, which {PREFIX}{present} needs" for name in missing]
    return found


def forgeries(settings: Settings) -> list[str]:
    """Reasons to refuse a header that names operators.

    Everyone whose address counts as a proxy's could name themselves.
    """
    if settings.ops_user_header is None:
        return []
    proxies = [one.strip() for one in os.environ.get("FORWARDED_ALLOW_IPS", "").split(",")]
    if not any(proxies) or any(one == "*" or one.endswith("/0") for one in proxies):
        return [
            f"{PREFIX}OPS_USER_HEADER needs FORWARDED_ALLOW_IPS with the addresses of the proxies, "
            "and no *: others could name themselves as operators"
        ]
    return []


def doubts(settings: Settings) -> list[str]:
    """Settings that permit a start but should not stay.

    For the log at start.
    """
    found = _short_secrets(settings)
    if not settings.is_development:
        if settings.jwks_url is not None and settings.jwks_url.startswith("http://"):
            found.append(f"{PREFIX}JWKS_URL is http: anyone on the way can issue tokens")
        if "*" in settings.origins:
            found.append(f"{PREFIX}ORIGINS admits pages of any origin")
    known = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            found.append(f"{name} is not a setting{hint}")
    return found
