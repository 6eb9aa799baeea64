"""The call providers that the settings name."""

from collections.abc import Callable

from pydantic import SecretStr

from server.calls.daily import DailyAdapter
from server.calls.facts import Adapter
from server.calls.livekit import LiveKitAdapter
from server.calls.livekit_rest import LiveKitRest
from server.calls.rest import RestClient, http_url
from server.calls.stream import StreamAdapter
from server.calls.stream_rest import StreamRest
from server.runtime.settings import Settings


class CallProviders:
    """An adapter for each provider that is set up, by its name.

    :meth:`close` them in the end.
    """

    def __init__(self, settings: Settings, now_ms: Callable[[], int]) -> None:
        """``now_ms`` is epoch milliseconds."""
        self._clients: list[RestClient] = []
        self._now_ms = now_ms
        found = (self._stream(settings), self._livekit(settings), self._daily(settings))
        self.adapters: dict[str, Adapter] = {each.name: each for each in found if each is not None}

    def close(self) -> None:
        """Asks no provider any more."""
        for client in self._clients:
            client.close()

    def _stream(self, settings: Settings) -> Adapter | None:
        api_key, secret = settings.stream_api_key, _text(settings.stream_secret_key)
        if api_key is None or secret is None:
            return None
        client = self._client("stream", settings.stream_api_url)
        rest = StreamRest(client, api_key, secret, self._now_ms)
        is_trusted = settings.stream_custom_data == "trusted"
        return StreamAdapter(secret, rest, trusts_custom=is_trusted)

    def _livekit(self, settings: Settings) -> Adapter | None:
        url, api_key = settings.livekit_url, settings.livekit_api_key
        secret = _text(settings.livekit_api_secret)
        if url is None or api_key is None or secret is None:
            return None
        client = self._client("livekit", http_url(url))
        rest = LiveKitRest(client, api_key, secret, self._now_ms)
        return LiveKitAdapter(api_key, secret, rest)

    def _daily(self, settings: Settings) -> Adapter | None:
        api_key, secret = _text(settings.daily_api_key), _text(settings.daily_webhook_secret)
        if api_key is None or secret is None:
            return None
        client = self._client("daily", settings.daily_api_url)
        return DailyAdapter(secret, api_key, client, self._now_ms)

    def _client(self, provider: str, url: str) -> RestClient:
        client = RestClient(provider, url)
        self._clients.append(client)
        return client


def _text(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
