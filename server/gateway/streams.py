"""The event streams of a process, and the way to other processes'.

A request of a stream may arrive at any process: behind one port, or a load balancer, nothing leads
it to the process that serves the stream. So the stream's id names that process. Any other process
checks the token, passes the request on over Redis Pub/Sub, and waits for the answer. A message
whose answer is lost may have been taken.
"""

import asyncio
import itertools
import secrets
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import structlog
from starlette.types import Receive, Send

from protocol.wire.errors import ErrorCode, PeerError, ServiceError
from protocol.wire.stream_events import StreamOpen
from server import limits as server_limits
from server.access.principals import Principal
from server.gateway.connection import Connection
from server.process import Process
from server.transport.event_stream import EventStream
from server.transport.keepalive import Keepalive
from storage.redis.live import LiveError
from storage.tasks import end

log = structlog.get_logger()

Outcome = Literal["taken", "unknown", "forbidden", "full"]
"""What a stream's process did with a request: the last two are refusals."""


class UnknownStreamError(Exception):
    """There is no such stream; the client opens a new one."""


class StreamUser(NamedTuple):
    """The user of a stream, whose tokens its requests show."""

    tenant: str
    user_id: str


class OpenStream(NamedTuple):
    """A stream of this process."""

    stream: EventStream
    user: StreamUser


class Streams:
    """The event streams of a process, by their ids."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._streams: dict[str, OpenStream] = {}
        self._answers: dict[int, asyncio.Future[Outcome]] = {}
        """Requests that were passed on, by number, and wait for the answer."""
        self._numbers = itertools.count()
        self._keepalive: Keepalive | None = None
        self._is_listening = False

    async def listen(self) -> None:
        """Begins to hear what other processes pass on or answer.

        Raises ``LiveError`` if Redis does not answer.
        """
        if not self._is_listening:
            channel = self.process.live.keys.streams_channel(self.process.node)
            await self.process.registry.accounts.channels.subscribe(channel, self._hears)
            self._is_listening = True

    # --- A stream's life -----------------------------------------------------------------

    async def serve(
        self, principal: Principal, bearer: str, address: str, receive: Receive, send: Send
    ) -> None:
        """Serves a stream, whose answer has begun, until it has ended."""
        stream = EventStream()
        secret = secrets.token_urlsafe(server_limits.STREAM_SECRET_BYTES)
        stream_id = f"{self.process.node}.{secret}"
        self._streams[stream_id] = OpenStream(stream, user_of(principal))
        if self._keepalive is None:
            self._keepalive = Keepalive(
                asyncio.get_running_loop(),
                server_limits.PING_INTERVAL_MS / 1000,
                server_limits.PONG_TIMEOUT_MS / 1000,
            )
        self._keepalive.add(stream)
        stream.say(StreamOpen(stream_id=stream_id))
        watching = asyncio.create_task(stream.watch(receive))
        writing = asyncio.create_task(stream.write(send))
        try:
            await Connection(self.process, stream, stream.receive, address).run(bearer)
            await asyncio.wait([writing])
        finally:
            del self._streams[stream_id]
            await end([watching, writing])

    # --- Requests --------------------------------------------------------------------------

    async def post(self, principal: Principal, stream_id: str, texts: Sequence[str]) -> None:
        """Has a stream take a request's messages, wherever the stream is.

        The request proves life as of now. Raises :class:`UnknownStreamError`, ``forbidden`` for
        another user's stream, ``rate_limited`` when too many messages wait, and ``unavailable``.
        """
        process, user = self.process, user_of(principal)
        came_at = process.stall_detector.proof_at(process.clock.now())
        node = stream_id.partition(".")[0]
        if node == process.node:
            outcome = self._take(stream_id, user, texts, came_at)
        else:
            outcome = await self._passed_on(node, stream_id, user, texts, came_at)
        if outcome == "unknown":
            raise UnknownStreamError
        if outcome == "forbidden":
            raise PeerError(ErrorCode.FORBIDDEN, "the stream is another user's")
        if outcome == "full":
            raise PeerError(ErrorCode.RATE_LIMITED, "too many messages wait", retry_after_ms=1_000)

    def _take(
        self, stream_id: str, user: StreamUser, texts: Sequence[str], came_at: int
    ) -> Outcome:
        found = self._streams.get(stream_id)
        if found is None or not found.stream.is_open:
            return "unknown"
        if found.user != user:
            return "forbidden"
        return "taken" if found.stream.take(texts, came_at) else "full"

    async def _passed_on(
        self, node: str, stream_id: str, user: StreamUser, texts: Sequence[str], came_at: int
    ) -> Outcome:
        """Passes a request on to the process ``node``; returns its answer."""
        if len(self._answers) >= server_limits.STREAM_POSTS_WAITING_MAX:
            raise ServiceError("too many requests wait for other processes")
        number = next(self._numbers)
        answered: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._answers[number] = answered
        try:
            await self.listen()
            request = {
                "post": number, "from": self.process.node, "stream": stream_id, "user": [*user],
                "texts": texts, "came_at": came_at,
            }  # fmt: skip
            if not await self.process.live.tell_process(node, request):
                return "unknown"  # that process is gone
            async with asyncio.timeout(server_limits.REQUEST_TIMEOUT_MS / 1000):
                return await answered
        except TimeoutError:
            raise ServiceError("the stream's process does not answer") from None
        finally:
            del self._answers[number]

    def _hears(self, message: dict[str, Any]) -> None:
        """Handles a request that was passed on, or an answer."""
        if "answer" in message:
            answered = self._answers.get(message["answer"])
            if answered is not None and not answered.done():
                answered.set_result(message["outcome"])
        elif "post" in message:
            outcome = self._take(
                message["stream"],
                StreamUser(*message["user"]),
                message["texts"],
                message["came_at"],
            )
            answer = {"answer": message["post"], "outcome": outcome}
            self.process.registry.run(self._answer(message["from"], answer))

    async def _answer(self, node: str, answer: dict[str, Any]) -> None:
        try:
            await self.process.live.tell_process(node, answer)
        except LiveError as error:
            log.warning("stream_request_unanswered", error=str(error))


def user_of(principal: Principal) -> StreamUser:
    """The user of a principal, who is a user."""
    assert principal.tenant is not None
    assert principal.user_id is not None
    return StreamUser(principal.tenant, principal.user_id)
