/**
 * A thousand components that are mounted and unmounted, each with a session of its own.
 */

import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

const MOUNTS = 1_000;
const FIGURES = { elapsed_ms: 1, free_remaining_ms: 0, paid: true, remaining_ms: 9, limit: null };

/** A server that answers `auth` and `start` at once. */
class Socket {
  static open = 0;
  readyState = 1;
  bufferedAmount = 0;

  constructor() {
    Socket.open += 1;
    queueMicrotask(() => this.onopen());
  }

  send(text) {
    const { type, id, session_id } = JSON.parse(text);
    const answers = {
      auth: { type: 'welcome', user_id: 'ann', account_id: 'ann', ping_ms: 0 },
      start: { type: 'session', session_id, state: 'active', seq: 0, credits: '1', ...FIGURES },
    };
    const answer = answers[type];
    if (answer) queueMicrotask(() => this.onmessage?.({ data: JSON.stringify({ id, ...answer }) }));
  }

  close() {
    Socket.open -= 1;
  }
}

/** Returns what is left afterwards: sessions in the heap, timers, and sockets after a log-out. */
export async function leftovers(Taximeter) {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc');
  const timers = new Set();
  const platform = {
    WebSocket: Socket,
    setTimeout: (callback, delayMs) => {
      const timer = setTimeout(() => {
        timers.delete(timer);
        callback();
      }, delayMs);
      timers.add(timer);
      return timer;
    },
    clearTimeout: (timer) => {
      clearTimeout(timer);
      timers.delete(timer);
    },
  };
  const meter = new Taximeter({ url: 'ws://localhost/v1/ws', token: 'token-1', platform });
  const found = [];
  for (let mount = 0; mount < MOUNTS; mount += 1) {
    const session = meter.retain({ kind: 'chat', sessionId: `chat-${mount}` });
    const end = session.subscribe(() => {});
    await session.ready;
    end();
    session.release();
    found.push(new WeakRef(session));
    await new Promise((resolve) => setTimeout(resolve));
  }
  collect();
  await new Promise(setImmediate);
  collect();
  const kept = found.filter((session) => session.deref()).length;
  const open = Socket.open;
  meter.switchUser(null);
  return { kept, timers: timers.size, open, openAfterwards: Socket.open };
}
