"""Asks the REST of call providers, from threads of its own.

A provider that is slow holds only these threads. Redirects are refused, for they would carry the
token elsewhere.
"""

import asyncio
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from server.calls import limits as call_limits
from server.calls.facts import Presence, ProviderError, RefusedEventError
from server.runtime.bounded_http import HttpAnswer, HttpFailedError, NoRedirects, request

USER_AGENT = "Taximeter/0.1"
RETRYABLE = frozenset({408, 425, 429})
"""Statuses below 500 after which the same question may succeed."""

Read = TypeVar("Read")


class RestClient:
    """The REST of one provider below ``url``; :meth:`close` it in the end."""

    def __init__(self, provider: str, url: str) -> None:
        self._provider = provider
        self._url = url.rstrip("/")
        self._threads = ThreadPoolExecutor(
            call_limits.CALL_REST_AT_ONCE_MAX, thread_name_prefix=f"{provider}-rest"
        )

    def close(self) -> None:
        """Starts no further request; those under way end within their deadline."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        query: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> bytes | None:
        """The body of a successful answer; None: there is no such object.

        A 404 that is no JSON is a proxy's, and says nothing about a call. ``path`` is
        percent-encoded. Raises :class:`ProviderError`.
        """
        url = f"{self._url}{path}" + (f"?{urlencode(query)}" if query else "")
        sent = None if body is None else msgspec.json.encode(body)
        loop = asyncio.get_running_loop()
        try:
            answer = await loop.run_in_executor(
                self._threads, self._request, method, url, dict(headers), sent
            )
        except HttpFailedError as error:
            raise ProviderError(f"{self._provider} does not answer: {error}") from None
        if answer.status == 404 and _is_object(answer.body):
            return None
        if not 200 <= answer.status < 300:
            raise ProviderError(
                f"{self._provider} answers {answer.status} to {method} {path}",
                retryable=answer.status >= 500 or answer.status in RETRYABLE,
            )
        return answer.body

    def _request(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None
    ) -> HttpAnswer:
        return request(
            url,
            method=method,
            headers={
                "User-Agent": USER_AGENT,
                "Accept": "application/json",
                **({"Content-Type": "application/json"} if body is not None else {}),
                **headers,
            },
            body=body,
            redirects=NoRedirects(),
            timeout_ms=call_limits.CALL_REST_TIMEOUT_MS,
            bytes_max=call_limits.CALL_REST_BYTES_MAX,
        )


def read_answer(provider: str, body: bytes, answer_type: type[Read]) -> Read:
    """An answer's JSON as ``answer_type``; raises :class:`ProviderError`."""
    try:
        return msgspec.json.decode(body, type=answer_type)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise unusable(provider) from None


def _is_object(body: bytes) -> bool:
    """Whether a body is a JSON object, as providers describe errors."""
    try:
        msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def unusable(provider: str, error: RefusedEventError | None = None) -> ProviderError:
    """The error for an answer that the provider does not document."""
    reason = f": {error.message}" if error is not None else ""
    return ProviderError(f"{provider} answers what it does not document{reason}")


def summed_durations_ms(presences: Iterable[Presence]) -> dict[str, int]:
    """The provider's figure for each participant who has one."""
    found: dict[str, int] = {}
    for each in presences:
        if each.duration_ms is not None:
            found[each.participant] = found.get(each.participant, 0) + each.duration_ms
    return found


def http_url(url: str) -> str:
    """``url`` for HTTP: LiveKit's own is often ``wss``."""
    parts = urlsplit(url)
    return parts._replace(
        scheme={"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    ).geturl()
