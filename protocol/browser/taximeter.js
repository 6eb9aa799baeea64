/**
 * The browser client: one WebSocket with any number of sessions on it.
 *
 *     const meter = new Taximeter({ url: '/v1/ws', token: () => fetchToken() });
 *     const session = meter.start({ kind: 'chat', sessionId: 'chat-17' });
 *     session.addEventListener('limit_warning', ({ detail }) => warn(detail.remaining_ms));
 *     session.addEventListener('stopped', ({ detail }) => show(detail.receipt));
 *     const { elapsed_ms, credits } = session.now();      // call this for each frame
 *     await session.stop();
 *
 * The server counts, the browser shows. This code decides nothing that is billed:
 * `session.now()` estimates figures between two ticks, and the next message replaces the
 * estimate. This code keeps no session alive either: the browser itself answers the server's
 * pings. So a background tab, whose timers are throttled, loses no session.
 *
 * Fields have the names and units of the wire: `_ms` is milliseconds, `_at` epoch
 * milliseconds, credits are decimal strings. The types are in taximeter.d.ts.
 */

import { TaximeterError, Unauthorized, comesBackAfter, errorOfClose } from './errors.js';
import { Line, addressOf } from './line.js';
import { Requests } from './requests.js';
import { Session } from './session.js';
import { Store } from './store.js';
import { Timers } from './timers.js';
import { freshToken, renewalDelayMs } from './tokens.js';

export { Session, TaximeterError, Unauthorized, comesBackAfter };

/** Defaults of the options, in milliseconds. */
const REQUEST_TIMEOUT_MS = 10_000;
const BACKOFF_FIRST_MS = 500;
const BACKOFF_MOST_MS = 10_000;

/** After a connection that lived this long the backoff begins anew. */
const PROVEN_MS = 10_000;
/** Attempts in a row without a `welcome` before the client reports `unreachable`. */
const MISSES_TOLD = 3;
/** After as many, the next attempt goes another way. */
const MISSES_BLOCKED = 2;
/** A waking page asks a line that was silent for longer. */
const PROBE_AFTER_MS = 1_000;
/** How often a start is repeated while the server is busy. */
const START_RETRIES = 3;

/** The view of a meter that has not connected. */
const IDLE = Object.freeze({
  connection: 'idle',
  user_id: null,
  account_id: null,
  credits: null,
  usage: null,
  error: null,
});

const isHidden = () => globalThis.document?.visibilityState === 'hidden';

/**
 * A connection to a Taximeter server.
 *
 * It connects with the first `start`, `retain` or `watch`, or with `connect()`, and
 * reconnects by itself unless the protocol forbids that. Before that it opens, arms and hears
 * nothing, so that a server may make one, too.
 *
 * Events: `connection`, `welcome`, `credit` (the account has changed), `usage`, `error`,
 * `resumed` (the page is back, and its sessions are joined).
 * It is a store too: `subscribe` and `getSnapshot` give the connection, user and balance.
 */
export class Taximeter extends Store {
  #options;
  #platform;
  #sessions = new Map(); // by session id: the sessions to join again after a reconnect
  #held = new Map(); // by session id: those that retain() gave, until their last release
  #requests;
  #line = null;
  #leaving = null; // the line to a draining process, until another process has our sessions
  #attempt = 0; // waits since a connection last lived for PROVEN_MS
  #misses = 0; // attempts in a row without a `welcome`
  #trouble = null; // the `unreachable` error, once the client has reported it
  #error = null; // why there is no connection
  #credits = null;
  #usage = null; // the last `usage` message
  #isBlocked = false; // whether the next attempt goes without a WebSocket
  #away = null; // measures the time since the server was heard last, once the line is lost
  #joining = null; // the line on which all sessions are being joined
  #lastToken;
  #refusal = null; // the server's error for our token on this line
  #epoch = 0; // number of the current connection: a late token of an older one is dropped
  #liveSince = null;
  #timers; // `retry`, `drain`, `refresh`, `watchdog`, and a `join` for each session
  #listening = null; // ends our listening to the page

  /** The view on a server, and before a page has taken it over. */
  getServerSnapshot = () => IDLE;

  constructor({ url = '/v1/ws', token, ...options } = {}) {
    super();
    this.#options = {
      requestTimeoutMs: REQUEST_TIMEOUT_MS,
      backoffFirstMs: BACKOFF_FIRST_MS,
      backoffMostMs: BACKOFF_MOST_MS,
      ...options,
      url,
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
    this.#timers = new Timers(this.#platform);
    this.#requests = new Requests(this.#platform, this.#options.requestTimeoutMs);
    /** `idle`, `connecting`, `live`, `reconnecting`, `offline` (given up) or `closed`. */
    this.state = 'idle';
    /** The last `welcome`, with user and credits; null before the first. */
    this.welcome = null;
  }

  /**
   * Connects now.
   *
   * Use it to connect before the first `start`, to connect again after `offline`, or to make
   * the next attempt without waiting. `start` connects by itself.
   */
  connect() {
    this.#begin();
    this.#hurry();
  }

  /** Starts a session, or joins it if it runs already. */
  start(options) {
    return this.#start(options, true);
  }

  /**
   * A session that components hold together; it has one more holder afterwards.
   *
   * The first call starts the session. Call `release()` of the session once for each call.
   */
  retain(options) {
    let session = this.find(options.sessionId);
    if (session?._request.type !== 'start') session = this.#start(options, false);
    this.#held.set(session.sessionId, session);
    return session.retain();
  }

  /**
   * The session of this id that this page runs, watches or holds.
   *
   * The meter calls its subscribers when there is a new one.
   */
  find(sessionId) {
    return this.#held.get(sessionId) ?? this.#sessions.get(sessionId);
  }

  /**
   * Follows a session without keeping it alive.
   *
   * Operators name the session's tenant: `org` for an organisation, or `user` for a user
   * without one.
   */
  watch(sessionId, { lastSeq, org, user } = {}) {
    const known = this.#sessions.get(sessionId);
    return known ?? this.#open({ type: 'watch', session_id: sessionId, org, user }, lastSeq);
  }

  /**
   * Leaves every session of the user, and connects with the token of another.
   *
   * Nothing that concerns the old user is heard afterwards. Without a token it logs out: the
   * state is `idle`, and nothing is open or armed.
   */
  switchUser(token = null) {
    this.#assertOpen();
    this.#end('idle', 'The user has changed.', token);
    if (token !== null) this.connect();
  }

  /** Leaves every session and closes the connection for good. */
  close() {
    this.#end('closed', 'The connection was closed.');
  }

  /** Lets go of everything; the server takes the closed line as leave. */
  #end(state, text, token) {
    this.#stopAll();
    this._era += 1;
    this.#options.token = token;
    this.welcome = this.#credits = this.#usage = this.#lastToken = null;
    const error = new TaximeterError('closed', text);
    const sessions = [...this.#sessions.values()];
    this.#listening?.abort();
    this.#listening = null;
    this.#held.clear();
    this.#sessions.clear();
    this.#giveUp(state, error);
    for (const session of sessions) session._leave(error);
  }

  /** Ends sessions over HTTP, because a `stop` without an answer would be lost with the page. */
  #stopAll() {
    for (const { stopWanted, sessionId } of this.#sessions.values()) {
      if (!stopWanted || !this.#lastToken) continue;
      const path = `sessions/${encodeURIComponent(sessionId)}/stop`;
      this._fetch(path, { method: 'POST', keepalive: true }).catch(() => {});
    }
  }

  /** @internal Makes a request below `/v1/`, as the user of the last `welcome`. */
  _fetch(path, init) {
    const url = new URL(path, addressOf(this.#options.url, 'http'));
    const headers = { Authorization: `Bearer ${this.#lastToken}` };
    return fetch(url, { ...init, headers });
  }

  #assertOpen() {
    if (this.state === 'closed') throw new TaximeterError('closed', 'This meter was closed.');
  }

  #start({ kind, sessionId, counterpartId, tickMs, metadata, lastSeq }, isOwned) {
    const optional = { counterpart_id: counterpartId, tick_ms: tickMs, metadata };
    const request = { type: 'start', kind, session_id: sessionId, ...optional };
    return this.#open(request, lastSeq, isOwned);
  }

  /** Opens a session; one that is owned is left by `leave()` only. */
  #open(request, lastSeq, isOwned = true) {
    this.#assertOpen();
    const sessionId = request.session_id;
    const link = {
      now: this.#platform.now,
      request: (type, from) => this.#ask({ type, session_id: sessionId }, from),
      leave: (from) => this.#leave(from),
      idle: (from) => this.#platform.setTimeout(() => this.#leaveIdle(from), 0),
    };
    const session = this.#sessions.get(sessionId) ?? new Session(sessionId, link, lastSeq);
    this.#sessions.set(sessionId, session);
    Object.assign(session, { _request: request, _isOwned: isOwned });
    this._tell(); // what shows this session finds it now
    if (this.state === 'live') this.#join(session);
    else this.#begin();
    return session;
  }

  #begin() {
    if (!['idle', 'offline'].includes(this.state)) return;
    if (!this.#listening) this.#listen();
    this.#connect();
  }

  #listen() {
    this.#listening = new AbortController();
    const { signal } = this.#listening;
    const wake = (event) => this.#wake(event);
    for (const type of ['online', 'pageshow']) {
      globalThis.addEventListener?.(type, wake, { signal });
    }
    for (const type of ['visibilitychange', 'resume']) {
      globalThis.document?.addEventListener(type, wake, { signal });
    }
    globalThis.addEventListener?.('pagehide', () => this.#stopAll(), { signal });
  }

  async #join(session, attempt = 0) {
    const timer = `join ${session.sessionId}`;
    this.#timers.disarm(timer);
    if (this.state !== 'live' || this.#sessions.get(session.sessionId) !== session) return;
    try {
      return await this.#ask(session._joining(), session, { resend: false });
    } catch (error) {
      if (this.#sessions.get(session.sessionId) !== session) return; // left meanwhile
      if (['disconnected', 'closed'].includes(error.code)) return; // the reconnect joins it
      // A running session must survive a server that is busy for a moment, and so must a
      // session whose start was carried out although its answer timed out. When the server
      // keeps refusing a start, or gives no time for it (a full account), the caller repeats it.
      const isBusy = error.code === 'unavailable' || error.retryAfterMs !== null;
      const mayStart = isBusy && attempt < START_RETRIES;
      if (error.code === 'timeout' || (error.retryable && session.snapshot) || mayStart) {
        const delayMs = Math.max(this.#backoffMs(attempt), error.retryAfterMs);
        this.#timers.arm(timer, delayMs, () => this.#join(session, attempt + 1));
        return;
      }
      this.#forget(session);
      session._fail(error);
    }
  }

  /**
   * Leaves a session that has got no new holder meanwhile.
   *
   * One that stops ends by itself, unless the server refuses the stop: then it is left, because
   * it would go on without anything that shows it.
   */
  #leaveIdle(session) {
    if (session._isHeld) return;
    const { sessionId, stopWanted, _isOwned } = session;
    if (this.#held.get(sessionId) === session) this.#held.delete(sessionId);
    const isAsked = this.#requests.of(session).some(({ message }) => message.type === 'stop');
    const isStopping = stopWanted && (isAsked || this.state !== 'live');
    if (!isStopping && !_isOwned) this.#leave(session);
  }

  #leave(session) {
    if (this.#sessions.get(session.sessionId) !== session) return;
    this.#forget(session);
    // `leave` has no answer and no repetition, so it is sent even on a full line. A line that
    // is lost leaves by itself; one that is being left keeps the session alive.
    for (const line of [this.state === 'live' && this.#line, this.#leaving]) {
      if (line) line.send({ type: 'leave', session_id: session.sessionId }, Infinity);
    }
    // Requests of this session are not repeated: on a later line it is not joined.
    const error = new TaximeterError('closed', 'The session was left.');
    session._leave(error);
    for (const entry of this.#requests.of(session)) {
      entry.resend = false;
      this.#timers.disarm(`request ${entry.message.id}`);
      if (this.state !== 'live') entry.reject(error);
    }
  }

  #forget({ sessionId }) {
    this.#sessions.delete(sessionId);
    this.#held.delete(sessionId);
    this.#timers.disarm(`join ${sessionId}`);
  }

  /** Makes a request, once the line is live; promises its answer. */
  #ask(message, session, { resend = true } = {}) {
    const entry = this.#requests.add(message, session, resend);
    if (['offline', 'closed'].includes(this.state)) {
      entry.reject(new TaximeterError(this.state, 'There is no connection.'));
    } else if (this.state === 'live' || message.type === 'auth') this.#transmit(entry);
    return entry.promise;
  }

  /** Sends a request; on a full line it times out or is resent. */
  #transmit(entry) {
    if (this.#requests.has(entry)) this.#line?.send(entry.message);
  }

  async #connect() {
    const epoch = ++this.#epoch;
    this.#refusal = null;
    this.#setState(this.welcome ? 'reconnecting' : 'connecting');
    try {
      const token = await this.#token();
      if (epoch !== this.#epoch) return;
      if (!token) throw new Unauthorized('There is no token.');
      const WebSocket = await this.#socket();
      if (epoch !== this.#epoch) return;
      this.#line = this.#dial(token, WebSocket);
    } catch (error) {
      if (epoch === this.#epoch) this.#fail(error);
    }
  }

  async #token() {
    const { token, requestTimeoutMs } = this.#options;
    const epoch = this.#epoch;
    const fresh = await freshToken(token, this.#platform, requestTimeoutMs);
    if (epoch === this.#epoch) this.#lastToken = fresh;
    return fresh;
  }

  /** What to connect with: the same messages go over a stream where no WebSocket gets through. */
  async #socket() {
    const { fallback } = this.#options;
    const { WebSocket } = this.#platform;
    if (!this.#isBlocked || fallback === null) return WebSocket;
    if (fallback) return fallback;
    const found = await import('./fallback.js').catch(() => null); // no network, perhaps
    return found?.StreamSocket ?? WebSocket;
  }

  #dial(token, WebSocket) {
    const timeoutMs = this.#options.requestTimeoutMs;
    const means = { platform: this.#platform, timers: this.#timers, timeoutMs, WebSocket };
    const line = new Line(this.#options.url, means, {
      opened: () => {
        this.#ask({ type: 'auth', token }, null, { resend: false }).catch((error) => {
          if (line === this.#line) this.#refusal = error; // next the server closes the line
        });
      },
      received: (message) => this.#receive(message),
      lost: (code, reason) => this.#lost(code, reason),
    });
    return line;
  }

  #receive(message) {
    if (message.type === 'welcome') this.#receiveWelcome(message);
    else if (message.type === 'error') return this.#receiveError(message);
    else if (message.type === 'reconnect') this.#drain(message);
    else if (message.type === 'credit') this.#receiveCredit(message);
    else if (message.type === 'usage') {
      this.#usage = message;
      this._emit('usage', message);
    }
    const session = this.#sessions.get(message.session_id);
    if (message.credits && session?._request.type === 'start') this.#noteCredits(message);
    session?._receive(message);
    this.#requests.get(message.id)?.resolve(message);
    if (session && (message.type === 'stopped' || session.state === 'ended')) {
      this.#finish(session, message);
    }
    return this._change();
  }

  #receiveWelcome(message) {
    this.welcome = message;
    this.#noteCredits(message);
    const now = this.#platform.now();
    const { expires_at, server_time_at } = message;
    if (expires_at) this.#armRefresh(now + expires_at - server_time_at);
    this._emit('welcome', message);
    if (this.state === 'live' || !this.#line) return; // a refresh, or a listener has closed us
    this.#misses = 0;
    this.#trouble = null;
    this.#liveSince = now;
    this.#line.watch(message.ping_ms);
    this.#setState('live');
    this.#joinAll(true);
  }

  /** Joins the sessions, those that are to stop first, and reports what they have missed. */
  async #joinAll(isNew) {
    const [line, away] = [this.#line, this.#away];
    this.#away = null;
    this.#joining = line;
    const awayMs = away && Math.round(away());
    const sessions = [...this.#sessions.values()].sort((a, b) => b.stopWanted - a.stopWanted);
    const joins = sessions.map(async (session) => {
      const wasJoined = session.snapshot !== null;
      const joined = this.#join(session);
      if (isNew) this.#repeat(session);
      const missed = (await joined)?.missed ?? [];
      if (wasJoined && away) session._emit('resumed', { away_ms: awayMs, missed });
      return missed;
    });
    const missed = (await Promise.all(joins)).flat();
    if (line === this.#joining) this.#joining = null;
    if (line !== this.#line) return;
    this.#letGo();
    if (away) this._emit('resumed', { away_ms: awayMs, missed });
  }

  /** Sends again what a session asks for, also a `stop` that nothing waits for any more. */
  #repeat(session) {
    const waiting = this.#requests.of(session).filter((entry) => entry.resend);
    for (const entry of waiting) this.#transmit(entry);
    const isAsked = waiting.some((entry) => entry.message.type === 'stop');
    if (session.stopWanted && !isAsked) session.stop().catch(() => {});
  }

  #receiveError({ id, code, message, session_id: sessionId, ...rest }) {
    const { retry_after_ms: retryAfterMs } = rest;
    const error = new TaximeterError(code, message, { ...rest, retryAfterMs, sessionId });
    const entry = this.#requests.get(id);
    if (!entry) (this.#sessions.get(sessionId) ?? this)._emit('error', error);
    else if (this.#platform.now() + retryAfterMs < entry.dueAt) {
      this.#timers.arm(`request ${id}`, retryAfterMs, () => this.#transmit(entry));
    } else entry.reject(error);
  }

  #receiveCredit(message) {
    const isOurs = message.account_id === this.welcome?.account_id;
    const sessions = isOurs ? [...this.#sessions.values()] : []; // a listener may change them
    if (isOurs) this.#noteCredits(message);
    this._emit('credit', message);
    for (const session of sessions) session._credit(message);
  }

  #noteCredits({ credits }) {
    this.#credits = Number(credits);
  }

  /** Settles the requests of a session that has ended. */
  #finish(session, message) {
    if (this.#sessions.get(session.sessionId) !== session) return; // a listener has left it
    this.#sessions.delete(session.sessionId);
    const error = new TaximeterError('session_ended', 'The session has ended.');
    for (const entry of this.#requests.of(session)) {
      if (entry.message.type === 'stop' && message.type === 'stopped') entry.resolve(message);
      else entry.reject(error);
    }
  }

  /** Leaves a draining process at a random instant, to spread clients. */
  #drain({ after_ms: afterMs, by }) {
    if (by) this.#isBlocked = false; // the stream itself: a WebSocket gets through
    this.#timers.arm('drain', this.#platform.random() * afterMs, () => this.#move());
  }

  /** Connects anew before it closes the present line, which keeps our sessions alive. */
  #move() {
    this.#timers.disarm('drain');
    this.#letGo();
    this.#leaving = this.#line;
    this.#leaving?.mute();
    this.#dropped();
    this.#connect();
  }

  #letGo() {
    this.#leaving?.close();
    this.#leaving = null;
  }

  #lost(code, reason) {
    // The server would refuse the same token again; a function may give a better one.
    const isFixed = typeof this.#options.token !== 'function';
    const isRefused = isFixed && (code === 4002 || this.#refusal?.retryable === false);
    const isFinal = isRefused || !comesBackAfter(code);
    const error = errorOfClose(code, reason, !isFinal, this.#refusal);
    const hadWelcome = this.#liveSince !== null;
    this.#dropped();
    if (isFinal) this.#fail(error);
    else if (this.#timers.isArmed('drain') && !isHidden()) {
      this.#setState('reconnecting', { code }); // the timer `drain` reconnects
    } else this.#comeBack(error, hadWelcome);
  }

  /** Reports why an attempt failed, and then tries again or gives up. */
  #fail(error) {
    const epoch = this.#epoch;
    this._emit('error', error);
    if (epoch !== this.#epoch) return; // a listener has closed the connection
    if (error.retryable) this.#comeBack(error);
    else this.#giveUp('offline', error);
  }

  /** Handles what every lost connection has in common. */
  #dropped() {
    const { now } = this.#platform;
    if (this.#liveSince !== null) {
      if (now() - this.#liveSince >= PROVEN_MS) this.#attempt = 0;
      this.#away = this.#line?.silence;
    }
    this.#liveSince = this.#line = null;
    this.#timers.disarm('refresh');
    for (const session of this.#sessions.values()) session._freeze();
    const error = new TaximeterError('disconnected', 'The line was lost.', { retryable: true });
    for (const entry of this.#requests.of()) if (!entry.resend) entry.reject(error);
  }

  #comeBack(error, hadWelcome = false) {
    const { closeCode } = error;
    this.#misses = hadWelcome ? 0 : this.#misses + 1;
    const isNews = this.#misses === MISSES_TOLD;
    if (this.#misses >= MISSES_BLOCKED) this.#isBlocked = !this.#isBlocked;
    if (this.#misses >= MISSES_TOLD) {
      const details = { retryable: true, closeCode, cause: error };
      this.#trouble = new TaximeterError('unreachable', error.message, details);
    }
    // A hidden page makes its first attempt at once: its timer may take a minute, and a
    // session does not wait for its client for a minute.
    const isNow = isHidden() && this.#attempt === 0;
    const delayMs = isNow ? 0 : this.#backoffMs(this.#attempt);
    this.#attempt += 1;
    this.#timers.disarm('drain');
    this.#timers.arm('retry', delayMs, () => this.#connect());
    this.#setState('reconnecting', { code: closeCode, retry_in_ms: delayMs });
    if (isNews && this.#trouble) this._emit('error', this.#trouble);
    if (isNow) this.#hurry();
  }

  /** A random delay below a bound that doubles up to `backoffMostMs`. */
  #backoffMs(attempt) {
    const { backoffFirstMs, backoffMostMs } = this.#options;
    return this.#platform.random() * Math.min(backoffMostMs, backoffFirstMs * 2 ** attempt);
  }

  /** Ends a backoff when the page, network or machine is back. */
  #wake({ type, persisted }) {
    this.#timers.check();
    if (isHidden() && type !== 'online') return;
    this.#hurry();
    const silentMs = this.state === 'live' ? this.#line.silence() : 0;
    // The server has given up a client that was silent for two of its pings, and a page in the
    // back/forward cache has lost its line.
    const isStale = silentMs > 2 * this.welcome?.ping_ms && this.#sessions.size;
    if (this.state === 'live' && (persisted || isStale)) this.#move();
    else if (silentMs >= PROBE_AFTER_MS && this.#joining !== this.#line) {
      this.#line.probe();
      this.#away = this.#line.silence;
      this.#joinAll();
    }
  }

  #hurry() {
    if (!this.#timers.isArmed('retry')) return;
    this.#timers.disarm('retry');
    this.#connect();
  }

  #giveUp(state, error) {
    this.#epoch += 1;
    this.#line?.close();
    this.#letGo();
    this.#dropped();
    this.#timers.clear();
    this.#misses = 0;
    this.#trouble = this.#away = null;
    for (const session of this.#sessions.values()) session._giveUp(error);
    for (const entry of this.#requests.of()) entry.reject(error);
    this.#setState(state, { code: error.closeCode, error });
  }

  #setState(state, detail = {}) {
    this.state = state;
    this.#error = detail.error ?? this.#trouble;
    for (const target of [this, ...this.#sessions.values()]) {
      const rest = { code: null, retry_in_ms: null, error: this.#trouble };
      target._emit('connection', { state, ...rest, ...detail });
    }
  }

  /** @internal */
  _view() {
    const { user_id = null, account_id = null } = this.welcome ?? {};
    const [credits, usage, error] = [this.#credits, this.#usage, this.#error];
    return { connection: this.state, user_id, account_id, credits, usage, error };
  }

  /**
   * Arms the renewal of the token.
   *
   * If a renewal fails, the client tries again. If all renewals fail, the server closes with
   * 4002, and the client reconnects with a new token.
   */
  #armRefresh(expiresAt) {
    const lifeMs = expiresAt - this.#platform.now();
    if (typeof this.#options.token !== 'function' || lifeMs < 1_000) return;
    this.#timers.arm('refresh', renewalDelayMs(lifeMs), () => this.#refresh(expiresAt));
  }

  async #refresh(expiresAt) {
    const line = this.#line;
    try {
      const token = await this.#token();
      if (line !== this.#line) return; // a newer line has a token of its own
      this.#armRefresh(expiresAt);
      await this.#ask({ type: 'refresh', token }, null, { resend: false });
    } catch (error) {
      if (line !== this.#line) return;
      if (error instanceof Unauthorized) return void this.#fail(error);
      this.#armRefresh(expiresAt);
      this._emit('error', error);
    }
  }
}
