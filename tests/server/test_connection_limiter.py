"""The limiter of connections: slow peers, many peers, and its log."""

import pytest
import structlog
from uvicorn.middleware.proxy_headers import _TrustedHosts

from server import limits as server_limits
from server.transport.connection_limiter import ConnectionLimiter, network_of
from tests.fixtures.server import StartServer
from tests.server.api import ask
from tests.server.echoes import (
    CHUNKED,
    GET,
    LENGTH,
    POST,
    cuts,
    echoing,
    ends,
    hasty,
    status_of,
    write_until_cut,
)
from tests.server.peers import (
    on_both_loops,
    request,
    until,
)


@on_both_loops
async def test_a_connection_that_says_nothing_is_closed() -> None:
    async with echoing(hasty(head_s=0.03)) as served:
        peer = await served.peer()
        assert await ends(peer)
        assert (cuts(served, "silent"), cuts(served, "slow_head")) == (1, 0)


@on_both_loops
async def test_a_head_that_does_not_end_is_answered_408() -> None:
    async with echoing(hasty(head_s=0.03, linger_s=0.03)) as served:
        peers = [await served.peer(sent) for sent in (b"G", GET[:-2], GET[:30])]
        for peer in peers:
            assert await status_of(peer) == 408
        # A peer that goes on after the 408 is cut.
        await write_until_cut(peers[0], b"X: y\r\n")
        # The next request on a connection has the same time limit.
        served.limiter.head_s = 60.0
        peer = await served.peer(GET)
        assert await status_of(peer) == 200
        served.limiter.head_s = 0.03
        await peer.write(GET[:-2])
        assert await status_of(peer) == 408
        assert served.asked == ["/first"]


@on_both_loops
async def test_empty_lines_do_not_keep_a_connection_open() -> None:
    async with echoing(hasty(keep_alive_s=0.05)) as served:
        peer = await served.peer(GET)
        assert await status_of(peer) == 200
        await write_until_cut(peer, b"\r\n")


@on_both_loops
async def test_a_body_that_does_not_end_is_answered_408() -> None:
    async with echoing(hasty(body_s=0.03)) as served:
        for head in (LENGTH + b"\r\nab", CHUNKED + b"\r\n1\r\nx\r\n"):
            peer = await served.peer(POST + head)
            assert await status_of(peer) == 408
            assert await served.left.get() == "/first"
            assert await ends(peer)
        assert cuts(served, "slow_body") == 2


@on_both_loops
async def test_an_unwanted_body_is_read_for_a_moment() -> None:
    async with echoing(hasty(linger_s=0.03)) as served:
        peer = await served.peer(POST.replace(b"first", b"early") + LENGTH + b"\r\nab")
        assert await status_of(peer) == 200
        await ends(peer)
        # If the whole body arrives, the connection stays open.
        served.limiter.linger_s = 60.0
        peer = await served.peer(POST.replace(b"first", b"early") + LENGTH + b"\r\nab")
        assert await status_of(peer) == 200
        await peer.write(b"cd" + GET)
        assert await status_of(peer) == 200


@on_both_loops
async def test_a_peer_that_does_not_read_its_answer_is_cut() -> None:
    async with echoing(hasty(drain_s=0.03)) as served:
        await served.peer(GET.replace(b"first", b"large"))
        await until(lambda: cuts(served, "not_reading"))
        await until(lambda: served.limiter.count == 0)


@on_both_loops
async def test_a_close_that_waits_for_its_peer_is_cut() -> None:
    async with echoing(hasty(drain_s=60.0)) as served:
        await served.peer(GET.replace(b"first HTTP/1.1", b"large HTTP/1.1\r\nConnection: close"))
        await until(
            lambda: any(
                connection.transport.is_closing() for connection in served.limiter.connections
            )
        )
        served.limiter.drain_s = 0.03
        await until(lambda: served.limiter.count == 0)
        assert cuts(served, "not_reading") == 0


@on_both_loops
async def test_a_full_server_refuses_with_503() -> None:
    limiter = hasty()
    limiter.connections_max = 2
    async with echoing(limiter) as served:
        _, accepted = await served.pair()
        busy = await served.peer(GET.replace(b"first", b"hold"))
        await until(lambda: served.asked)
        for sent in (b"", GET, request()):
            peer = await served.peer(sent)
            assert await status_of(peer) == 503
            assert await ends(peer)
        assert cuts(served, "full") == 3
        # Each that goes makes room, a WebSocket as well.
        accepted.push.abort(1006, "")
        await served.lost.get()
        peer = await served.peer(GET)
        assert await status_of(peer) == 200
        served.release.set()
        assert await status_of(busy) == 200
    assert (limiter.count, limiter._by_network) == (0, {})


@on_both_loops
async def test_a_full_server_lets_the_longest_idle_connection_go() -> None:
    limiter = hasty()
    limiter.connections_max = 3
    async with echoing(limiter) as served:
        silent, half, idle = [await served.peer(sent) for sent in (b"", GET[:-2], GET)]
        assert await status_of(idle) == 200
        # Each new peer evicts the connection that is idle the longest: silent peers keep none out.
        peers = []
        for peer_before in (silent, half):
            peers.append(await served.peer(GET))
            assert await status_of(peers[-1]) == 200
            await ends(peer_before)
        _, accepted = await served.pair()
        await ends(idle)
        assert accepted.push.is_open
        assert cuts(served, "evicted") == 3


@on_both_loops
async def test_refused_connections_that_stay_are_few() -> None:
    limiter = hasty()
    limiter.connections_max = 1
    async with echoing(limiter) as served:
        await served.pair()
        peers = [await served.peer() for _ in range(server_limits.LINGERING_MAX + 10)]
        await until(lambda: cuts(served, "full") == len(peers))
        await until(lambda: len(limiter.connections) == server_limits.LINGERING_MAX)
        for peer in peers:
            assert await status_of(peer) == 503
            peer.close()
        await until(lambda: not limiter.connections)
        assert limiter.lingering == 0


@on_both_loops
async def test_one_address_does_not_take_every_place() -> None:
    async with echoing() as served:
        served.limiter.proxies = ()
        kept = server_limits.SOCKETS_PER_ADDRESS_MAX
        server_limits.SOCKETS_PER_ADDRESS_MAX = 2  # type: ignore[misc]
        try:
            first, _ = await served.peer(GET), await served.peer(GET)
            assert await status_of(await served.peer(GET)) == 503
            assert cuts(served, "address") == 1
            other = await served.peer(GET, source="127.0.0.2")
            assert await status_of(other) == 200
            assert await status_of(first) == 200
            # A proxy speaks for many.
            served.limiter.proxies = _TrustedHosts("127.0.0.1")
            assert await status_of(await served.peer(GET)) == 200
        finally:
            server_limits.SOCKETS_PER_ADDRESS_MAX = kept  # type: ignore[misc]


def test_a_host_is_counted_by_its_network() -> None:
    assert network_of("192.0.2.7") == network_of("::ffff:192.0.2.7") == "192.0.2.7"
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") == "2001:db8::/64"
    assert network_of("2001:db8:0:1::1") == "2001:db8:0:1::/64"
    for unknown in ("", "unix:", "not an address", "1:2:3"):
        assert network_of(unknown) == unknown


async def test_forwarded_for_of_an_untrusted_peer_is_logged_once(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"X-Forwarded-For": "198.51.100.7"}
    server = await start_server()
    with structlog.testing.capture_logs() as logged:
        await ask(server, "GET", "/healthz", None, headers=told)
    assert [line for line in logged if line["event"] == "forwarded_for_ignored"] == []
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "127.0.0.6")
    server = await start_server()
    with structlog.testing.capture_logs() as logged:
        for _ in range(3):
            await ask(server, "GET", "/healthz", None, headers=told)
    (line,) = [line for line in logged if line["event"] == "forwarded_for_ignored"]
    assert line["peer"] == "127.0.0.1"
    assert "FORWARDED_ALLOW_IPS" in line["hint"]


def test_untrusted_peers_are_named_up_to_a_number() -> None:
    limiter = ConnectionLimiter()
    with structlog.testing.capture_logs() as logged:
        for number in range(server_limits.PROXIES_REPORTED_MAX + 10):
            limiter.forwarded(f"10.0.0.{number}")
    assert len(logged) == server_limits.PROXIES_REPORTED_MAX
