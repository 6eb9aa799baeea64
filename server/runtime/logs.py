"""The log: structured, on standard error, for people or machines, without secrets.

Our own events and those of the libraries go the same way, so redaction sees all of them. PITFALLS:
uvicorn logs the whole WebSocket URL, query included; here queries are cut off before anything is
written.
"""

import json
import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from server import limits as server_limits

REDACTED = "[redacted]"

# Fields that are secret by their name. A number under such a name is a count, and stays.
_SECRET_NAME = re.compile(
    r"token|authorization|api[_-]?key|secret|password|cookie|signature", re.IGNORECASE
)
_SECRET_TEXT = re.compile(
    # A header's value with its scheme: `Bearer abc`.
    r"(?P<scheme>\b(?:bearer|basic)\s+)[^\s\"',;]+"
    # A JWT, whole or truncated: its header is base64 of `{"`.
    r"|\beyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]+){0,2}"
    # The password in a URL, which messages of redis and asyncpg quote.
    r"|(?P<user>://[^\s/:@]*:)[^\s/@]+(?=@)"
    # name=value and "name": "value", as in queries, bodies and headers with their scheme.
    r"|(?P<name>(?:token|authorization|api[_-]?key|secret|password)[\"']?\s*[=:]\s*[\"']?)"
    r"(?!\s|\[redacted)(?:(?:bearer|basic)\s+)?[^\s\"'&,;]+",
    re.IGNORECASE,
)


def configure(log_format: Literal["console", "json"], level: int = logging.INFO) -> None:
    """Sets up the logs of the process; then start uvicorn with ``log_config=None``.

    The format ``console`` is for people. ``json`` writes one object a line with ``timestamp``
    (UTC), ``level``, ``logger``, ``event`` and the event's own fields. May be called again.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                # A traceback becomes text before it is redacted, because it quotes values too.
                structlog.processors.format_exc_info,
                structlog.processors.StackInfoRenderer(),
                redact,
                _renderer(log_format),
            ],
        )
    )
    handler.addFilter(cut_query)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "py.warnings"):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
    logging.captureWarnings(True)


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Removes secrets from an event, by field name and pattern."""
    # uvicorn's own copy of the event, with colours and without its arguments.
    event.pop("color_message", None)
    return {
        name: _clean_field(name, value, server_limits.LOG_FIELD_DEPTH_MAX)
        for name, value in event.items()
    }


def redact_text(text: str) -> str:
    """``text`` without secrets.

    Secrets are bearer tokens, JWTs, passwords in URLs and values of secret names.
    """
    return _SECRET_TEXT.sub(_keep_label, text)


def cut_query(record: logging.LogRecord) -> bool:
    """A log filter that cuts queries off paths in uvicorn's records.

    It passes all records.
    """
    if record.name.startswith("uvicorn") and isinstance(record.args, tuple):
        record.args = tuple(
            arg.partition("?")[0] + "?..."
            if isinstance(arg, str) and arg.startswith("/") and "?" in arg
            else arg
            for arg in record.args
        )
    return True


def _renderer(log_format: Literal["console", "json"]) -> Processor:
    if log_format == "json":
        return structlog.processors.JSONRenderer(serializer=_to_json)
    return structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )


def _to_json(event: EventDict, **_: object) -> str:
    try:
        return orjson.dumps(event, default=str).decode()
    # orjson refuses large integers and lone surrogates; the log must accept every value.
    except TypeError:
        return json.dumps(event, default=str)


def _clean_field(name: object, value: Any, depth: int) -> Any:
    if isinstance(name, str) and _SECRET_NAME.search(name):
        return value if value is None or isinstance(value, bool | int | float) else REDACTED
    return _clean(value, depth)


def _clean(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return redact_text(value)
    if depth == 0:
        return REDACTED
    if isinstance(value, Mapping):
        return {str(name): _clean_field(name, part, depth - 1) for name, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(part, depth - 1) for part in value]
    # Bytes, exceptions and other values: the text that would be written is searched.
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return redact_text(text)


def _keep_label(match: re.Match[str]) -> str:
    label = match["scheme"] or match["user"] or match["name"] or ""
    return label + REDACTED
