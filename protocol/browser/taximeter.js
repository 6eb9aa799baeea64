/**
 * Taximeter in the browser: one WebSocket, any number of sessions on it.
 *
 *     const meter = new Taximeter({ url: '/v1/ws', token: () => fetchToken() });
 *     const session = meter.start({ kind: 'chat', sessionId: 'chat-17' });
 *     session.addEventListener('limit_warning', ({ detail }) => warn(detail.remaining_ms));
 *     session.addEventListener('stopped', ({ detail }) => show(detail.receipt));
 *     const { elapsed_ms, credits } = session.now();      // as often as the screen is drawn
 *     await session.stop();
 *
 * The server counts, the browser shows. Nothing here decides what is billed: between two
 * ticks `session.now()` estimates, and what the server says next replaces the estimate.
 * Nothing here keeps a session alive either: the browser itself answers the server's pings,
 * so a tab in the background, whose timers are throttled, loses no session.
 *
 * Fields keep the names and units of the wire: `_ms` is milliseconds, `_at` epoch
 * milliseconds, credits are decimal strings. Types: taximeter.d.ts.
 */

/** The defaults of the options; all are milliseconds. */
const REQUEST_TIMEOUT_MS = 10_000;
const BACKOFF_FIRST_MS = 500;
const BACKOFF_MOST_MS = 10_000;

/** A connection that lived this long has proved itself: the next backoff begins anew. */
const PROVEN_MS = 10_000;
/** An estimate that is ahead of the server by less than this waits instead of stepping back. */
const HOLD_MS = 1_500;
/** Credits that leave a straight line by more than this are charged in lumps (increments). */
const LUMP_MS = 2_500;
/** More than this unsent means a line that does not drain: nothing is piled on top of it. */
const UNSENT_MOST_BYTES = 65_536;
/** The longest delay a browser's timer takes. */
const TIMER_MOST_MS = 2 ** 31 - 1;

/** Why a close code that forbids coming back does so, as an error code of the protocol. */
const FINAL_CLOSES = new Map([
  [1009, ['bad_message', 'A message was over 16 KiB.']],
  [4500, ['unauthenticated', 'The token was refused.']],
  [4501, ['unauthenticated', 'No token arrived in time.']],
  [4502, ['bad_message', 'The server could not follow the conversation.']],
  [4503, ['rate_limited', 'There are too many connections.']],
]);

/** Whether a client comes back after this close code (the table in PROTOCOL, section 1). */
export function comesBackAfter(code) {
  return [1001, 1006, 1011, 1012].includes(code) || (code >= 4000 && code <= 4499);
}

/**
 * What went wrong, for a program: `code` is one of the protocol's error codes, or `timeout`
 * (no answer in time), `disconnected` (the line was lost for good) or `closed` (by us).
 * `retryable` says whether the same request may succeed later.
 */
export class TaximeterError extends Error {
  constructor(code, message, { retryable = false, ...details } = {}) {
    super(message, { cause: details.cause });
    this.name = 'TaximeterError';
    this.code = code;
    this.retryable = retryable;
    this.limit = details.limit ?? null;
    this.sessionId = details.sessionId ?? null;
    this.closeCode = details.closeCode ?? null;
  }
}

function emit(target, type, detail) {
  target.dispatchEvent(new CustomEvent(type, { detail }));
}

/**
 * A session as this browser sees it; made by `Taximeter.start` and `Taximeter.watch`.
 *
 * Events carry the server's message as `detail`: `session`, `tick`, `free_time`,
 * `limit_warning`, `limit_cleared`, `limit_reached`, `minute`, `stopped`; further `error`
 * (a TaximeterError) and `connection`. A message with a `seq` is delivered once, in order,
 * however often the connection drops in between.
 */
export class Session extends EventTarget {
  #link;
  #base = null; // the latest figures, and at which instant of our clock they were true
  #shown = 0; // the furthest elapsed_ms that now() has given
  #delivered; // the seq of the last notice that listeners were given
  #joinedAt; // the seq of the first snapshot: what came before it is no news
  #lead = 0; // by how much credits are ahead of a straight line, in milliseconds of price
  #resolveReady;
  #rejectReady;

  constructor(sessionId, link, lastSeq) {
    super();
    this.#link = link;
    this.#delivered = lastSeq;
    /** The session's id. */
    this.sessionId = sessionId;
    /** The last `session` message, or null before the first. */
    this.snapshot = null;
    /** The receipt, once the session has ended. */
    this.receipt = null;
    /** True after `stop()`: the wish outlives a lost connection. */
    this.stopWanted = false;
    /** Resolves with the first snapshot; rejects when the session cannot start. */
    this.ready = new Promise((resolve, reject) => {
      this.#resolveReady = resolve;
      this.#rejectReady = reject;
    });
    this.ready.catch(() => {}); // whoever listens to `error` only is told there
    /** @internal What the server is asked for when the session is joined. */
    this._request = null;
  }

  /** `starting`, then the protocol's states: active, paused, suspended, stopping, ended. */
  get state() {
    return this.#base?.state ?? 'starting';
  }

  /** What to keep for `start({ lastSeq })` after a reload of the page; undefined at first. */
  get lastSeq() {
    const seqs = [this.#delivered, this.#joinedAt].filter((seq) => seq !== undefined);
    return seqs.length ? Math.max(...seqs) : undefined;
  }

  /**
   * The figures at this instant, estimated from the last ones that the server sent; null
   * before the first. Time moves only while the session is active and the line is up, never
   * past the limit, and not backwards for the sake of a late tick.
   */
  now() {
    if (!this.#base) return null;
    const reading = this.#readingAfter(this.#run());
    this.#shown = reading.elapsed_ms;
    return reading;
  }

  /** Stops the clock; resolves with the snapshot. */
  pause() {
    return this.#link.request('pause', this);
  }

  /** Lets the clock go on, also within the grace after a limit; resolves with the snapshot. */
  resume() {
    return this.#link.request('resume', this);
  }

  /**
   * Ends the session; resolves with the `stopped` message, which holds the receipt. Without
   * a connection the wish is kept, and carried out on coming back, even after the promise
   * has timed out.
   */
  stop() {
    this.stopWanted = true;
    return this.#link.request('stop', this);
  }

  /** This page leaves; the session goes on for others, else its reconnect grace runs. */
  leave() {
    this.#link.leave(this);
  }

  /** @internal The same with what has been heard already. */
  _joining() {
    return { ...this._request, last_seq: this.lastSeq }; // JSON leaves out what is undefined
  }

  /** @internal The session cannot start, or cannot be joined again. */
  _fail(error) {
    if (error.code === 'session_ended') this.#settle({ state: 'ended' });
    this.#rejectReady(error);
    emit(this, 'error', error);
  }

  /** @internal The line is down: the clock stands still until the server speaks again. */
  _freeze() {
    this.#settle({ at: null });
  }

  /** @internal The account has changed by something other than this session's time. */
  _credit({ credits }) {
    this.#settle({ credits: Number(credits) });
  }

  /** @internal A message of this session from the server. */
  _receive(message) {
    if (message.type === 'session') return this.#receiveSnapshot(message);
    if (message.seq !== undefined) {
      if (this.#deliver(message)) this.#apply(message);
      else return undefined;
    }
    if (message.type === 'tick') this.#receiveTick(message);
    return emit(this, message.type, message);
  }

  #receiveSnapshot(message) {
    this.snapshot = message;
    this.#joinedAt ??= message.seq;
    this.#lead = 0;
    this.#base = { speed: message.speed ?? 1, state: message.state };
    this.#rebase(message);
    // The snapshot already contains what was missed, so it is told, but not applied again.
    for (const notice of [...(message.missed ?? [])].sort((a, b) => a.seq - b.seq)) {
      if (!this.#deliver(notice)) continue;
      if (notice.receipt) this.receipt = notice.receipt;
      emit(this, notice.type, { session_id: this.sessionId, ...notice });
    }
    this.#resolveReady(message);
    emit(this, 'session', message);
  }

  #receiveTick(tick) {
    const before = this.#base;
    if (!before) return;
    const price = this.#pricePerMs();
    const fallen = before.credits - Number(tick.credits);
    if (price > 0 && fallen >= 0) {
      const paid = Math.max(0, tick.elapsed_ms - before.elapsed_ms - before.free_remaining_ms);
      this.#lead += this.#inLumps() ? 0 : fallen / price - paid;
    }
    this.#rebase(tick);
  }

  /** Whether a notice is news; the numbers of a session only rise. */
  #deliver(notice) {
    if (notice.seq <= (this.#delivered ?? -1)) return false;
    this.#delivered = notice.seq;
    return true;
  }

  /** What a notice changes in the figures, until the next snapshot or tick. */
  #apply({ type, free_remaining_ms, paid, receipt }) {
    if (receipt) this.receipt = receipt;
    if (!this.#base) return;
    if (type === 'free_time') this.#settle({ free_remaining_ms, paid });
    if (type === 'limit_reached') this.#settle({ state: 'stopping' }, this.#runToLimit());
    if (type === 'stopped') {
      this.#settle({ state: 'ended', ...(receipt && { elapsed_ms: receipt.elapsed_ms }) });
    }
  }

  /** The counted time since the last figures; nothing while the clock stands still. */
  #run() {
    const { state, at, elapsed_ms, remaining_ms, speed } = this.#base;
    if (state !== 'active' || at === null) return 0;
    const run = Math.max(0, (this.#link.now() - at) * speed);
    const behind = this.#shown - (elapsed_ms + run);
    const held = behind > 0 && behind < HOLD_MS * speed ? run + behind : run;
    return Math.min(held, Math.max(0, remaining_ms ?? Infinity));
  }

  /** As `#run`, but with the last moments before a limit, which the news of it overtook. */
  #runToLimit() {
    const { state, remaining_ms, speed } = this.#base;
    const run = this.#run();
    const isNear = remaining_ms !== null && remaining_ms - run < HOLD_MS * speed;
    return state === 'active' && isNear ? Math.max(run, remaining_ms) : run;
  }

  #readingAfter(run) {
    const { at: _, ...base } = this.#base;
    const { elapsed_ms, free_remaining_ms, remaining_ms, credits } = base;
    const paidRun = Math.max(0, run - free_remaining_ms);
    const burnt = this.#inLumps() ? 0 : paidRun * this.#pricePerMs();
    return {
      ...base,
      elapsed_ms: elapsed_ms + run,
      free_remaining_ms: Math.max(0, free_remaining_ms - run),
      paid: base.paid || (free_remaining_ms > 0 && paidRun > 0 && this.#pricePerMs() > 0),
      credits: Math.max(Math.min(0, credits), credits - burnt),
      remaining_ms: remaining_ms === null ? null : Math.max(0, remaining_ms - run),
    };
  }

  /** Makes today's estimate the figures to estimate from, with some of them corrected. */
  #settle(corrections, run = this.#base ? this.#run() : 0) {
    if (!this.#base) return;
    const at = this.#base.at === null ? null : this.#link.now();
    this.#base = { ...this.#readingAfter(run), at, ...corrections };
  }

  #rebase({ elapsed_ms, free_remaining_ms, paid, credits, remaining_ms, limit }) {
    this.#base = {
      ...this.#base,
      elapsed_ms,
      free_remaining_ms: free_remaining_ms ?? 0,
      paid,
      credits: Number(credits),
      remaining_ms: remaining_ms ?? null,
      limit: limit ?? null,
      at: this.#link.now(),
    };
  }

  #pricePerMs() {
    return Number(this.snapshot?.credits_per_minute ?? 0) / 60_000;
  }

  #inLumps() {
    return Math.abs(this.#lead) > LUMP_MS * (this.#base?.speed ?? 1);
  }
}

/**
 * A connection to a Taximeter server. It connects with the first `start` or `watch`, or
 * with `connect()`, and comes back by itself as long as the protocol allows it.
 *
 * Events: `connection`, `welcome`, `credit` (the account has changed), `error`.
 */
export class Taximeter extends EventTarget {
  #options;
  #platform;
  #url;
  #sessions = new Map(); // by session id: what is joined again on coming back
  #pending = new Map(); // by request id
  #lastId = 0;
  #socket = null;
  #attempt = 0; // how many times we have waited since a connection last proved itself
  #epoch = 0; // which connection is the current one: a late token of an older one is dropped
  #liveSince = null;
  #heardAt = 0;
  #asked = false; // whether a ping of ours waits for anything at all to be heard
  #timers = { retry: null, drain: null, refresh: null, watchdog: null };
  #listening = new AbortController();

  constructor({ url = '/v1/ws', token, ...options } = {}) {
    super();
    this.#options = {
      requestTimeoutMs: REQUEST_TIMEOUT_MS,
      backoffFirstMs: BACKOFF_FIRST_MS,
      backoffMostMs: BACKOFF_MOST_MS,
      ...options,
      token,
    };
    this.#platform = {
      WebSocket: globalThis.WebSocket,
      now: () => performance.now(),
      random: () => Math.random(),
      setTimeout: (callback, delayMs) => setTimeout(callback, delayMs),
      clearTimeout: (timer) => clearTimeout(timer),
      ...options.platform,
    };
    this.#url = new URL(url, globalThis.location?.href);
    this.#url.protocol = this.#url.protocol.replace('http', 'ws');
    /** `idle`, `connecting`, `live`, `reconnecting`, `offline` (given up) or `closed`. */
    this.state = 'idle';
    /** The last `welcome`: who we are, and our credits at that time; null before the first. */
    this.welcome = null;
    // A backoff need not be sat out when the network, or the reader, is back.
    const { signal } = this.#listening;
    globalThis.addEventListener?.('online', () => this.#hurry(), { signal });
    globalThis.document?.addEventListener('visibilitychange', () => this.#hurry(), { signal });
  }

  /** Connects now, also after the connection was given up. Not needed before `start`. */
  connect() {
    if (['idle', 'offline'].includes(this.state)) this.#connect();
  }

  /** Starts a session, or joins it where it lives already. */
  start({ kind, sessionId, counterpartId, tickMs, metadata, lastSeq }) {
    const optional = { counterpart_id: counterpartId, tick_ms: tickMs, metadata };
    return this.#open({ type: 'start', kind, session_id: sessionId, ...optional }, lastSeq);
  }

  /** Follows a session without keeping it alive. */
  watch(sessionId, { lastSeq } = {}) {
    const known = this.#sessions.get(sessionId);
    return known ?? this.#open({ type: 'watch', session_id: sessionId }, lastSeq);
  }

  /** Leaves every session and the server, for good. */
  close() {
    this.#listening.abort();
    this.#giveUp('closed', new TaximeterError('closed', 'The connection was closed.'));
    this.#sessions.clear();
  }

  #open(request, lastSeq) {
    if (this.state === 'closed') throw new TaximeterError('closed', 'This meter was closed.');
    const sessionId = request.session_id;
    const link = {
      now: this.#platform.now,
      request: (type, from) => this.#ask({ type, session_id: sessionId }, from),
      leave: (from) => this.#leave(from),
    };
    const session = this.#sessions.get(sessionId) ?? new Session(sessionId, link, lastSeq);
    this.#sessions.set(sessionId, session);
    session._request = request;
    if (this.state === 'live') this.#join(session);
    else this.connect();
    return session;
  }

  async #join(session) {
    if (this.state !== 'live' || this.#sessions.get(session.sessionId) !== session) return;
    try {
      await this.#ask(session._joining(), session, { resend: false });
    } catch (error) {
      if (['disconnected', 'closed'].includes(error.code)) return; // joined on coming back
      // A session that runs must not be lost to a server that is busy for a moment; nor may
      // one be forgotten that starts after all. A refused start is the caller's to repeat.
      if (error.code === 'timeout' || (error.retryable && session.snapshot)) {
        this.#platform.setTimeout(() => this.#join(session), this.#backoffMs());
        return;
      }
      this.#sessions.delete(session.sessionId);
      session._fail(error);
    }
  }

  #leave(session) {
    if (this.#sessions.get(session.sessionId) !== session) return;
    this.#sessions.delete(session.sessionId);
    this.#transmit({ type: 'leave', session_id: session.sessionId });
    session._freeze();
  }

  /** A request and the promise of its answer; what is not live yet waits until it is. */
  #ask(message, session, { resend = true } = {}) {
    return new Promise((resolve, reject) => {
      const id = ++this.#lastId;
      const settle = (settler) => (value) => {
        this.#platform.clearTimeout(timer);
        this.#pending.delete(id);
        settler(value);
      };
      const entry = {
        message: { ...message, id },
        session,
        resend,
        resolve: settle(resolve),
        reject: settle(reject),
      };
      const timer = this.#platform.setTimeout(() => {
        const text = `No answer to ${message.type} in time.`;
        entry.reject(new TaximeterError('timeout', text, { retryable: true }));
      }, this.#options.requestTimeoutMs);
      this.#pending.set(id, entry);
      if (['offline', 'closed'].includes(this.state)) {
        entry.reject(new TaximeterError(this.state, 'There is no connection.'));
      } else if (this.state === 'live' || message.type === 'auth') {
        this.#transmit(entry.message);
      }
    });
  }

  #transmit(message) {
    const socket = this.#socket;
    // What a full line cannot take is not lost: the request times out, or is sent again.
    if (socket?.readyState !== 1 || socket.bufferedAmount > UNSENT_MOST_BYTES) return;
    socket.send(JSON.stringify(message));
  }

  async #connect() {
    const epoch = ++this.#epoch;
    this.#setState(this.welcome ? 'reconnecting' : 'connecting');
    let token;
    try {
      token = await this.#freshToken();
    } catch (error) {
      if (epoch !== this.#epoch) return;
      emit(this, 'error', error);
      if (error.retryable) this.#comeBack();
      else this.#giveUp('offline', error);
      return;
    }
    if (epoch !== this.#epoch) return;
    const socket = new this.#platform.WebSocket(this.#url.href, 'taximeter.v1');
    this.#socket = socket;
    this.#arm('watchdog', this.#options.requestTimeoutMs, () => this.#declareDead());
    const current = (handler) => (event) => socket === this.#socket && handler(event);
    socket.onopen = current(() => {
      // A refused token is told by the error and by the close code that follows it.
      this.#ask({ type: 'auth', token }, null, { resend: false }).catch(() => {});
    });
    socket.onmessage = current(({ data }) => this.#receive(JSON.parse(data)));
    socket.onclose = current(({ code, reason }) => this.#lost(code, reason));
  }

  async #freshToken() {
    const { token } = this.#options;
    try {
      return typeof token === 'function' ? await token() : token;
    } catch (cause) {
      if (cause instanceof TaximeterError) throw cause;
      const text = 'No token could be had.';
      throw new TaximeterError('unauthenticated', text, { retryable: true, cause });
    }
  }

  #receive(message) {
    this.#heardAt = this.#platform.now();
    this.#asked = false;
    if (message.type === 'welcome') this.#receiveWelcome(message);
    else if (message.type === 'error') return this.#receiveError(message);
    else if (message.type === 'reconnect') this.#drain(message.after_ms);
    else if (message.type === 'credit') this.#receiveCredit(message);
    const session = this.#sessions.get(message.session_id);
    session?._receive(message);
    this.#pending.get(message.id)?.resolve(message);
    if (session && (message.type === 'stopped' || session.state === 'ended')) {
      this.#finish(session, message);
    }
    return undefined;
  }

  #receiveWelcome(message) {
    this.welcome = message;
    if (message.expires_at) this.#armRefresh(message.expires_at - message.server_time_at);
    emit(this, 'welcome', message);
    if (this.state === 'live') return; // the answer to a refresh
    this.#liveSince = this.#platform.now();
    this.#armWatchdog(message.ping_ms);
    this.#setState('live');
    const waiting = [...this.#pending.values()].filter((entry) => entry.resend);
    for (const session of this.#sessions.values()) {
      this.#join(session);
      const isAsked = waiting.some((entry) => entry.session === session);
      if (session.stopWanted && !isAsked) session.stop().catch(() => {});
    }
    for (const entry of waiting) this.#transmit(entry.message);
  }

  #receiveError({ id, code, message, retryable, limit, session_id: sessionId }) {
    const error = new TaximeterError(code, message, { retryable, limit, sessionId });
    const entry = this.#pending.get(id);
    if (entry) entry.reject(error);
    else emit(this.#sessions.get(sessionId) ?? this, 'error', error);
  }

  #receiveCredit(message) {
    const isOurs = message.account_id === this.welcome?.account_id;
    if (isOurs) for (const session of this.#sessions.values()) session._credit(message);
    emit(this, 'credit', message);
  }

  /** The session has ended: whatever was still asked of it has its answer. */
  #finish(session, message) {
    this.#sessions.delete(session.sessionId);
    const error = new TaximeterError('session_ended', 'The session has ended.');
    for (const entry of [...this.#pending.values()].filter((one) => one.session === session)) {
      if (entry.message.type === 'stop' && message.type === 'stopped') entry.resolve(message);
      else entry.reject(error);
    }
  }

  /** The process drains: go at an instant of one's own, so that not all come back at once. */
  #drain(afterMs) {
    this.#arm('drain', this.#platform.random() * afterMs, () => {
      this.#hangUp();
      this.#dropped();
      this.#connect();
    });
  }

  #lost(code, reason) {
    this.#socket = null;
    this.#dropped();
    if (!comesBackAfter(code)) {
      const [kind, text] = FINAL_CLOSES.get(code) ?? ['disconnected', 'The server hung up.'];
      const error = new TaximeterError(kind, reason || text, { closeCode: code });
      emit(this, 'error', error);
      this.#giveUp('offline', error);
    } else if (this.#timers.drain === null) this.#comeBack(code);
    else this.#setState('reconnecting', { code }); // the drain's own instant is set already
  }

  /** What is true of every lost connection, whoever ended it. */
  #dropped() {
    const { now } = this.#platform;
    if (this.#liveSince !== null && now() - this.#liveSince >= PROVEN_MS) this.#attempt = 0;
    this.#liveSince = null;
    for (const timer of ['refresh', 'watchdog']) this.#disarm(timer);
    for (const session of this.#sessions.values()) session._freeze();
    const error = new TaximeterError('disconnected', 'The line was lost.', { retryable: true });
    for (const entry of [...this.#pending.values()]) if (!entry.resend) entry.reject(error);
  }

  #comeBack(code) {
    const delayMs = this.#backoffMs();
    this.#attempt += 1;
    this.#arm('retry', delayMs, () => this.#connect());
    this.#setState('reconnecting', { code, retry_in_ms: delayMs });
  }

  /** Full jitter: anything from nothing to a bound that doubles up to the most. */
  #backoffMs() {
    const { backoffFirstMs, backoffMostMs } = this.#options;
    const boundMs = Math.min(backoffMostMs, backoffFirstMs * 2 ** Math.min(this.#attempt, 30));
    return this.#platform.random() * boundMs;
  }

  #hurry() {
    if (this.#timers.retry === null || globalThis.document?.visibilityState === 'hidden') return;
    this.#disarm('retry');
    this.#connect();
  }

  #giveUp(state, error) {
    this.#epoch += 1;
    this.#hangUp();
    this.#dropped();
    for (const timer of ['retry', 'drain']) this.#disarm(timer);
    this.#setState(state, { code: error.closeCode });
    for (const entry of [...this.#pending.values()]) entry.reject(error);
  }

  #hangUp() {
    const socket = this.#socket;
    this.#socket = null; // what it still says is no longer heard
    socket?.close(1000);
  }

  #setState(state, detail = {}) {
    this.state = state;
    for (const target of [this, ...this.#sessions.values()]) {
      emit(target, 'connection', { state, code: null, retry_in_ms: null, ...detail });
    }
  }

  /**
   * A new token in good time: when a fifth of the old one's life is left, two minutes at
   * most. If that fails there are further tries; and if all fail the server closes 4002,
   * and we come back with a new token.
   */
  #armRefresh(lifeMs) {
    if (typeof this.#options.token !== 'function' || lifeMs < 1_000) return;
    const leadMs = Math.min(120_000, lifeMs / 5);
    const epoch = this.#epoch;
    this.#arm('refresh', lifeMs - leadMs, async () => {
      try {
        const token = await this.#freshToken();
        if (epoch !== this.#epoch) return;
        this.#armRefresh(leadMs);
        await this.#ask({ type: 'refresh', token }, null, { resend: false });
      } catch (error) {
        if (epoch === this.#epoch && error.code !== 'disconnected') {
          emit(this, 'error', error);
          this.#armRefresh(leadMs);
        }
      }
    });
  }

  /**
   * Notices a dead line that the browser has not noticed: asks after a silence, and hangs up
   * after a second one. A late timer means that this page slept, and proves nothing.
   */
  #armWatchdog(pingMs) {
    this.#disarm('watchdog');
    if (!(pingMs > 0)) return;
    const dueAt = this.#platform.now() + pingMs;
    this.#arm('watchdog', pingMs, () => {
      const now = this.#platform.now();
      const isSilent = now - this.#heardAt >= pingMs;
      if (isSilent && this.#asked && now - dueAt < pingMs) return this.#declareDead();
      if (isSilent) this.#transmit({ type: 'ping' });
      this.#asked = isSilent;
      return this.#armWatchdog(pingMs);
    });
  }

  #declareDead() {
    this.#hangUp();
    this.#lost(1006, 'The line is dead.');
  }

  #arm(name, delayMs, callback) {
    this.#disarm(name);
    this.#timers[name] = this.#platform.setTimeout(
      () => {
        this.#timers[name] = null;
        callback();
      },
      Math.min(delayMs, TIMER_MOST_MS),
    );
  }

  #disarm(name) {
    if (this.#timers[name] !== null) this.#platform.clearTimeout(this.#timers[name]);
    this.#timers[name] = null;
  }
}
