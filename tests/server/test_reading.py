"""Each turn reads a few sockets in the order of arrival."""

from collections import Counter

from websockets.frames import Frame, Opcode

from server.limits import (
    SOCKETS_PER_TURN,
)
from tests.server.peers import (
    on_both_loops,
    serving,
    until,
)


@on_both_loops
async def test_simultaneous_sockets_are_read_a_few_each_turn() -> None:
    async with serving() as served:
        pairs = [await served.pair() for _ in range(4 * SOCKETS_PER_TURN)]
        turns = 0
        signs: list[int] = []
        for _, accepted in pairs:
            accepted.push.on_alive = lambda: signs.append(turns)
        for peer, _ in pairs:
            await peer.write_frames(Frame(Opcode.PONG, b""))

        def count_turns() -> None:
            nonlocal turns
            turns += 1
            if len(signs) < len(pairs):
                pairs[0][0].loop.call_soon(count_turns)

        count_turns()
        await until(lambda: len(signs) == len(pairs))
        # One turn may have read some before this counted it, and some after.
        assert max(Counter(signs).values()) <= 2 * SOCKETS_PER_TURN
