/**
 * Two users after one another, over every interleaving of what they hear.
 *
 * The first user has done `before` steps when the second takes over. The steps that are left of
 * the first are merged with those of the second in every order. Node runs this, for time and the
 * network are the test's.
 */

const NAMES = { first: 'ann', second: 'bob' };

/** One world: a meter on sockets, timers and tokens that the test moves. */
function makeWorld() {
  const world = { sockets: {}, tokens: {}, timers: new Map(), heard: [], isOver: false };
  let [number, nowMs] = [0, 0];
  world.platform = {
    WebSocket: class {
      readyState = 0;
      bufferedAmount = 0;
      sent = [];

      constructor() {
        world.last = this;
      }

      send(text) {
        this.sent.push(JSON.parse(text));
        if (this.sent[0].type === 'auth') world.sockets[this.sent[0].token] = this;
      }

      close() {
        this.readyState = 3;
      }
    },
    now: () => (nowMs += 1),
    random: () => 0,
    setTimeout: (callback) => {
      world.timers.set((number += 1), callback);
      return number;
    },
    clearTimeout: (timer) => world.timers.delete(timer),
  };
  world.token = (user) => () => new Promise((resolve) => {
    world.tokens[user] = () => resolve(user);
  });
  world.hear = (target, whose, types) => {
    for (const type of types) {
      target.addEventListener(type, ({ detail }) => world.heard.push({ whose, type, detail }));
    }
    target.subscribe(() => world.heard.push({ whose, view: target.getSnapshot() }));
  };
  return world;
}

const METER = ['connection', 'welcome', 'credit', 'usage', 'resumed', 'error'];
const SESSION = ['session', 'tick', 'limit_warning', 'minute', 'stopped', 'resumed', 'error',
  'connection'];
const FIGURES = { elapsed_ms: 1, free_remaining_ms: 0, paid: true, remaining_ms: 9, limit: null };

/** The steps of a user, in their order: what the world does to the client. */
function stepsOf(world, user) {
  const session_id = `${user}-1`;
  const credits = user === NAMES.first ? '111' : '222';
  const say = (message) => () => {
    const socket = world.sockets[user];
    const asked = socket?.sent.find(({ type }) => type === message.answers);
    if (message.answers && !asked) return;
    socket?.onmessage?.({ data: JSON.stringify({ credits, id: asked?.id, ...message }) });
  };
  return [
    () => world.tokens[user]?.(),
    () => {
      const socket = world.last;
      if (!socket?.onopen) return;
      socket.readyState = 1;
      socket.onopen();
    },
    say({
      ...{ type: 'welcome', answers: 'auth', user_id: user, account_id: user, ping_ms: 10_000 },
      ...{ expires_at: 3_600_000, server_time_at: 0 },
    }),
    say({
      ...{ type: 'session', answers: 'start', session_id, state: 'active', seq: 1, ...FIGURES },
      ...{ kind: 'chat', credits_per_minute: '1', limits: [], ends_at: null, server_time_at: 0 },
      missed: [{ type: 'limit_warning', session_id, seq: 0 }],
    }),
    say({ type: 'tick', session_id, ...FIGURES }),
    say({ type: 'limit_warning', session_id, seq: 2 }),
    say({ type: 'credit', account_id: user }),
    say({ type: 'usage', month: user }),
    say({ type: 'error', answers: 'pause', code: 'unavailable', message: user, retryable: true }),
    say({ type: 'error', session_id, code: 'unavailable', message: user, retryable: true }),
    say({ type: 'reconnect', after_ms: 0 }),
    () => {
      const socket = world.sockets[user];
      if (!socket?.onclose) return;
      socket.readyState = 3;
      socket.onclose({ code: 1006, reason: user });
    },
  ];
}

/** The timers that are armed at this moment. */
const runTimers = (world) => {
  for (const [number, callback] of [...world.timers]) {
    if (world.timers.delete(number)) callback();
  }
};

async function flush() {
  for (let turn = 0; turn < 24; turn += 1) await null;
}

function start(world, meter, user) {
  const session = meter.start({ kind: 'chat', sessionId: `${user}-1` });
  world.hear(session, user, SESSION);
  session.ready.catch(() => {});
  session.pause().then(
    () => world.heard.push({ whose: user, type: 'paused' }),
    (error) => {
      if (error.code !== 'closed') world.heard.push({ whose: user, type: 'refused', error });
    },
  );
  return session;
}

/** Fails if something of the first user was heard, or was sent for the second. */
function check(world, meter, session) {
  const told = JSON.stringify([
    world.heard,
    meter.getSnapshot(),
    meter.welcome,
    world.sockets[NAMES.second]?.sent ?? [],
  ]);
  if (/ann|111/.test(told)) throw new Error(`heard after the switch: ${told}`);
  if (session.getSnapshot().status !== 'off') throw new Error('the session is not off');
}

/** Runs one world; `order` says for each step after the switch whether it is the second's. */
async function run(Taximeter, before, order, { isQuick, isReentrant, by }) {
  const world = makeWorld();
  const { platform } = world;
  const options = { url: 'ws://localhost/v1/ws', fallback: null, platform };
  const meter = new Taximeter({ token: world.token(NAMES.first), ...options });
  world.hear(meter, 'meter', METER);
  const session = start(world, meter, NAMES.first);
  const steps = [stepsOf(world, NAMES.first), stepsOf(world, NAMES.second).slice(0, 5)];
  const settle = isQuick ? () => {} : flush;
  let hasSwitched = false;
  const change = () => {
    if (hasSwitched) return;
    hasSwitched = true;
    if (by === 'logout') meter.switchUser(null);
    meter.switchUser(world.token(NAMES.second));
    world.heard.length = 0;
    start(world, meter, NAMES.second);
  };
  const kinds = new Set();
  await flush();
  for (let step = 0; step < before; step += 1) {
    // Inside of a listener: the rest of the message is still to be delivered.
    if (isReentrant && step === before - 1) {
      for (const target of [meter, session]) {
        if (isReentrant === 'store') target.subscribe(change);
        else for (const type of [...METER, ...SESSION]) target.addEventListener(type, change);
      }
    }
    steps[0].shift()();
    await flush();
    for (const { type } of world.heard) kinds.add(type);
  }
  change();
  check(world, meter, session);
  await settle();
  for (const isSecond of order) {
    (steps[isSecond ? 1 : 0].shift() ?? (() => runTimers(world)))();
    await settle();
    check(world, meter, session);
  }
  runTimers(world);
  await flush();
  check(world, meter, session);
  meter.close();
  return kinds;
}

/** Every order of `first` steps of one user and `second` of the other. */
function* orders(first, second) {
  if (!first && !second) yield [];
  if (first) for (const rest of orders(first - 1, second)) yield [false, ...rest];
  if (second) for (const rest of orders(first, second - 1)) yield [true, ...rest];
}

/**
 * Runs every world; returns their number.
 *
 * Throws in the first world in which something of the first user is heard after the switch.
 */
export async function explore(Taximeter) {
  let worlds = 0;
  const kinds = new Set();
  const many = stepsOf(makeWorld(), NAMES.first).length;
  for (const by of ['switch', 'logout']) {
    for (const isQuick of [false, true]) {
      for (const isReentrant of [false, 'event', 'store']) {
        for (let before = 0; before <= many; before += 1) {
          for (const order of orders(Math.min(many - before, 5), 5)) {
            const heard = await run(Taximeter, before, order, { by, isQuick, isReentrant });
            for (const kind of heard) kinds.add(kind);
            worlds += 1;
          }
        }
      }
    }
  }
  const missing = [...METER, ...SESSION].filter((kind) => !kinds.has(kind));
  if (String(missing) !== 'resumed,minute,stopped,resumed') throw new Error(`no ${missing}`);
  return worlds;
}
