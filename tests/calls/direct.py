"""Asks a fake's REST without a socket, for thousands of questions."""

from collections.abc import Mapping
from typing import Any

import msgspec

from server.calls.facts import ProviderError
from server.calls.rest import RestClient
from tests.calls.fake_calls import FakeCalls


class DirectClient(RestClient):
    """The REST of a fake; see :class:`tests.calls.site.ProviderSite` for a real socket."""

    def __init__(self, fake: FakeCalls) -> None:
        super().__init__("fake", "http://127.0.0.1:1")
        self._fake = fake

    async def ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        query: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> bytes | None:
        """The fake's answer, as :meth:`RestClient.ask` gives it."""
        sent = b"" if body is None else msgspec.json.encode(body)
        lower = {name.lower(): value for name, value in headers.items()}
        status, _, answer = self._fake.answer(method, path, dict(query or {}), lower, sent)
        if status == 404:
            return None
        if status >= 300:
            raise ProviderError(f"the fake answers {status}")
        return answer
