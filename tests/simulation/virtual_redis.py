"""A real Redis with a virtual clock and real or mutated scripts.

Some scripts are broken on purpose. A few lines of Lua before each script replace what Redis's clock
decides (ids of a stream, the time, when a key expires) by virtual time. The script itself runs
unchanged. A mutation replaces a piece of a script, to see whether the auditor notices.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from unittest import mock

import storage.redis.scripts
from storage.redis.keys import NODES
from tests.simulation.mutants import instrumented, sites
from tests.simulation.redis_links import Command
from tests.simulation.redis_wire import RedisWire
from tests.simulation.virtual import FRACTION_MS, VirtualClock

LUA_DIR = storage.redis.scripts.LUA_DIR

_PRELUDE = """
local redis = (function(real)
  local clock = real.call('HMGET', 'simulator', 'now', 'stream')
  local function virtual(command, ...)
    local name, args = string.upper(command), {...}
    if name == 'XADD' then
      for index = 2, #args do
        if args[index] == '*' then
          args[index] = clock[2] .. '-' .. real.call('HINCRBY', 'simulator', 'serial', 1)
          break
        end
      end
    elseif name == 'TIME' then
      local ms = tonumber(clock[1])
      return {string.format('%.0f', math.floor(ms / 1000)),
        string.format('%.0f', ms % 1000 * 1000 + FRACTION)}
    elseif name == 'PEXPIRE' then
      if real.call('EXISTS', args[1]) == 0 then return 0 end
      real.call('ZADD', 'simulator:expiry', string.format('%.0f', clock[1] + args[2]), args[1])
      return 1
    elseif name == 'SET' and args[3] == 'PX' then
      real.call('ZADD', 'simulator:expiry', string.format('%.0f', clock[1] + args[4]), args[1])
      return real.call('SET', args[1], args[2])
    elseif name == 'PERSIST' then
      return real.call('ZREM', 'simulator:expiry', args[1])
    elseif name == 'DEL' then
      real.call('ZREM', 'simulator:expiry', unpack(args))
    end
    return real.call(command, unpack(args))
  end
  return setmetatable({call = virtual}, {__index = real})
end)(redis)
""".replace("FRACTION", str(int(FRACTION_MS * 1000)))

# Publishes the number of each reached piece once, on a channel of its own.
_REACHED = """
local reached = function(number, value)
  if redis.call('SETBIT', 'simulator:reached', number, 1) == 0 then
    redis.call('PUBLISH', 'simulator:reached', number)
  end
  return value
end
"""
REACHED = b"simulator:reached"

# Sets the clock, expires keys that are due, and writes the proofs of life of processes.
_TICK = """
redis.call('HSET', 'simulator', 'now', ARGV[1], 'stream', ARGV[2])
for _, key in ipairs(redis.call('ZRANGEBYSCORE', 'simulator:expiry', '-inf', ARGV[1])) do
  redis.call('DEL', key)
  redis.call('ZREM', 'simulator:expiry', key)
end
for index = 3, #ARGV, 2 do redis.call('ZADD', KEYS[1], 'GT', ARGV[index], ARGV[index + 1]) end
"""


class ScriptChange(Protocol):
    """A change that makes one thing in a script wrong."""

    @property
    def script(self) -> str:
        """The script's name."""

    def applied(self, text: str) -> str:
        """The script with the change."""


class Mutation(NamedTuple):
    """A script in which one text is replaced."""

    script: str
    old: str
    new: str

    def applied(self, text: str) -> str:
        """The script with the change."""
        assert text.count(self.old) == 1, (self, text.count(self.old))
        return text.replace(self.old, self.new)


@contextlib.contextmanager
def virtual_scripts(
    directory: Path, mutations: Sequence[ScriptChange] = (), *, tell_reached: bool = False
) -> Iterator[None]:
    """Makes clients created in this context load scripts for virtual time.

    With ``tell_reached``, the scripts publish on ``REACHED`` which of their pieces were reached, by
    the pieces' numbers over all scripts (``mutants.instrumented``).
    """
    prelude, first = _PRELUDE + _REACHED * tell_reached, 0
    for path in sorted(LUA_DIR.glob("*.lua")):
        text = path.read_text()
        for mutation in mutations:
            if mutation.script == path.stem:
                text = mutation.applied(text)
        if tell_reached:
            first, text = first + len(sites(text)), instrumented(text, first)
        (directory / path.name).write_text(prelude + text)
    with mock.patch.object(storage.redis.scripts, "LUA_DIR", directory):
        yield


class VirtualRedisServer:
    """Redis as the cluster reaches it, at one instant after the other."""

    def __init__(self, wire: RedisWire, clock: VirtualClock) -> None:
        self.wire = wire
        self.clock = clock
        self.proofs: Callable[[], Mapping[str, int]] = dict
        """Gives proofs of life that no heartbeat writes; see ``VirtualCluster``."""
        self.carried: Callable[[Sequence[Command], list[Any]], None] = lambda asked, answers: None
        """Called with commands and their answers, before the next command is sent."""
        self._tick_digest = wire.ask("SCRIPT", "LOAD", _TICK)
        self._told: Any = None
        self._stream_ms = 0

    def carry(self, commands: Sequence[Command]) -> list[Any]:
        """The answers of Redis to some commands, at this instant."""
        tick = self._tick()
        sent: list[Command] = []
        owed: list[int] = []
        for command in commands:
            owed.append(len(sent))
            sent.extend(self._timeless(command))
        found = self.wire.ask_all([*tick, *sent])[len(tick) :]
        answers = [found[index] for index in owed]
        self.carried(commands, answers)
        return answers

    def _timeless(self, command: Command) -> list[Command]:
        """Replaces a command's expiry of a key by one in virtual time."""
        if command[0] == "SET" and "PX" in command:
            at = command.index("PX")
            ends_at = self.clock.now_ms + self.clock.redis_ahead_ms + int(command[at + 1])
            plain = (*command[:at], *command[at + 2 :])
            return [plain, ("ZADD", "simulator:expiry", ends_at, command[1])]
        return [command]

    def ask(self, *command: Any) -> Any:
        """The answer to one command, for an observer.

        Raises Redis's error.
        """
        (answer,) = self.carry([command])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def append(self, stream: str, records: str) -> None:
        """Appends an entry to an outbox without a script."""
        self.carry([])
        (now,) = self.wire.ask("HMGET", "simulator", "stream")
        serial = self.wire.ask("HINCRBY", "simulator", "serial", 1)
        self.ask("XADD", stream, f"{now.decode()}-{serial}", "r", records)

    def forget(self, kinds: Sequence[str]) -> None:
        """Deletes the keys of some kinds that have an expiry."""
        for key in self.wire.ask("ZRANGE", "simulator:expiry", 0, -1):
            if key.decode().split(":")[1] in kinds:
                self.wire.ask_all([("DEL", key), ("ZREM", "simulator:expiry", key)])

    def empty(self) -> None:
        """Redis restarts without data and without scripts."""
        self.wire.ask_all([("FLUSHALL",), ("SCRIPT", "FLUSH")])
        self.wire.ask("SCRIPT", "LOAD", _TICK)
        self._told = None

    def empty_partition(self, partition: int) -> None:
        """A partition loses all its keys.

        This is as when one node of a Redis cluster restarts empty.
        """
        for key in self.wire.ask("KEYS", f"{{p{partition}}}*"):
            self.wire.ask_all([("DEL", key), ("ZREM", "simulator:expiry", key)])

    def snapshot(self) -> list[tuple[bytes, bytes]]:
        """All keys now: the data of a replica that stops following."""
        self.carry([])
        keys = sorted(self.wire.ask("KEYS", "*"))
        return list(zip(keys, self.wire.ask_all([("DUMP", key) for key in keys]), strict=True))

    def restore(self, snapshot: list[tuple[bytes, bytes]], *, is_said: bool = True) -> None:
        """A replica takes over with its data.

        With ``is_said``, Redis reports a new replication history, as after a real failover.
        """
        self.empty()
        for where in (("127.0.0.1", 1), ("NO", "ONE")) if is_said else ():
            self.wire.ask("REPLICAOF", *where)
        for answer in self.wire.ask_all([("RESTORE", key, 0, dump) for key, dump in snapshot]):
            assert answer == b"OK", answer
        self._told = None

    def _tick(self) -> list[Command]:
        now_ms = self.clock.now_ms + self.clock.redis_ahead_ms
        if self._told == now_ms:
            return []
        # A stream's ids never go back, even when the clock does.
        self._stream_ms = max(self._stream_ms, now_ms)
        self._told = now_ms
        proofs = [part for node, at in self.proofs().items() for part in (at, node)]
        return [("EVALSHA", self._tick_digest, 1, NODES, now_ms, self._stream_ms, *proofs)]
