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

import { TaximeterError, comesBackAfter, errorOfClose } from './errors.js';
import { Line } from './line.js';
import { Requests } from './requests.js';
import { Session, emit } from './session.js';
import { Timers } from './timers.js';
import { freshToken, renewalDelayMs } from './tokens.js';

export { Session, TaximeterError, comesBackAfter };

/** Defaults of the options, in milliseconds. */
const REQUEST_TIMEOUT_MS = 10_000;
const BACKOFF_FIRST_MS = 500;
const BACKOFF_MOST_MS = 10_000;

/** After a connection that lived this long the backoff begins anew. */
const PROVEN_MS = 10_000;
/** Attempts in a row without a `welcome` before the client reports `unreachable`. */
const MISSES_TOLD = 3;
/** How often a start is repeated while the server is busy. */
const START_RETRIES = 3;

const isHidden = () => globalThis.document?.visibilityState === 'hidden';

/**
 * A connection to a Taximeter server.
 *
 * It connects with the first `start` or `watch`, or with `connect()`, and reconnects by
 * itself unless the protocol forbids that.
 *
 * Events: `connection`, `welcome`, `credit` (the account has changed), `error`.
 */
export class Taximeter extends EventTarget {
  #options;
  #platform;
  #url;
  #sessions = new Map(); // by session id: the sessions to join again after a reconnect
  #requests;
  #line = null;
  #leaving = null; // the line to a draining process, until another process has our sessions
  #attempt = 0; // waits since a connection last lived for PROVEN_MS
  #misses = 0; // attempts in a row without a `welcome`
  #trouble = null; // the `unreachable` error, once the client has reported it
  #refusal = null; // the server's error for our token on this line
  #epoch = 0; // number of the current connection: a late token of an older one is dropped
  #liveSince = null;
  #timers; // `retry`, `drain`, `refresh`, `watchdog`, and a `join` for each session
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
    this.#timers = new Timers(this.#platform);
    this.#requests = new Requests(this.#platform, this.#options.requestTimeoutMs);
    this.#url = new URL(url, globalThis.location?.href);
    this.#url.protocol = this.#url.protocol.replace('http', 'ws');
    /** `idle`, `connecting`, `live`, `reconnecting`, `offline` (given up) or `closed`. */
    this.state = 'idle';
    /** The last `welcome`, with user and credits; null before the first. */
    this.welcome = null;
    const { signal } = this.#listening;
    const wake = (event) => this.#wake(event.type);
    for (const type of ['online', 'pageshow']) {
      globalThis.addEventListener?.(type, wake, { signal });
    }
    for (const type of ['visibilitychange', 'resume']) {
      globalThis.document?.addEventListener(type, wake, { signal });
    }
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
  start({ kind, sessionId, counterpartId, tickMs, metadata, lastSeq }) {
    const optional = { counterpart_id: counterpartId, tick_ms: tickMs, metadata };
    return this.#open({ type: 'start', kind, session_id: sessionId, ...optional }, lastSeq);
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

  /** Leaves every session and closes the connection for good. */
  close() {
    this.#listening.abort();
    this.#giveUp('closed', new TaximeterError('closed', 'The connection was closed.'));
    this.#sessions.clear();
  }

  #open(request, lastSeq) {
    if (this.state === 'closed') throw new TaximeterError('closed', 'This meter was closed.');
    const sessionId = request.session_id;
    const ask = (type, from) => this.#ask({ type, session_id: sessionId }, from);
    const link = { now: this.#platform.now, request: ask, leave: (from) => this.#leave(from) };
    const session = this.#sessions.get(sessionId) ?? new Session(sessionId, link, lastSeq);
    this.#sessions.set(sessionId, session);
    session._request = request;
    if (this.state === 'live') this.#join(session);
    else this.#begin();
    return session;
  }

  #begin() {
    if (['idle', 'offline'].includes(this.state)) this.#connect();
  }

  async #join(session, attempt = 0) {
    const timer = `join ${session.sessionId}`;
    this.#timers.disarm(timer);
    if (this.state !== 'live' || this.#sessions.get(session.sessionId) !== session) return;
    try {
      await this.#ask(session._joining(), session, { resend: false });
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
      this.#sessions.delete(session.sessionId);
      session._fail(error);
    }
  }

  #leave(session) {
    if (this.#sessions.get(session.sessionId) !== session) return;
    this.#sessions.delete(session.sessionId);
    this.#timers.disarm(`join ${session.sessionId}`);
    // `leave` has no answer and no repetition, so it is sent even on a full line.
    this.#line?.send({ type: 'leave', session_id: session.sessionId }, Infinity);
    session._freeze();
    // Requests of this session are not repeated: on a later line it is not joined.
    const error = new TaximeterError('closed', 'The session was left.');
    for (const entry of this.#requests.of(session)) {
      entry.resend = false;
      this.#timers.disarm(`request ${entry.message.id}`);
      if (this.state !== 'live') entry.reject(error);
    }
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
      this.#line = this.#dial(token);
    } catch (error) {
      if (epoch === this.#epoch) this.#fail(error);
    }
  }

  #token() {
    const { token, requestTimeoutMs } = this.#options;
    return freshToken(token, this.#platform, requestTimeoutMs);
  }

  #dial(token) {
    const timeoutMs = this.#options.requestTimeoutMs;
    const means = { platform: this.#platform, timers: this.#timers, timeoutMs };
    const line = new Line(this.#url, means, {
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
    else if (message.type === 'reconnect') this.#drain(message.after_ms);
    else if (message.type === 'credit') this.#receiveCredit(message);
    const session = this.#sessions.get(message.session_id);
    session?._receive(message);
    this.#requests.get(message.id)?.resolve(message);
    if (session && (message.type === 'stopped' || session.state === 'ended')) {
      this.#finish(session, message);
    }
    return undefined;
  }

  #receiveWelcome(message) {
    this.welcome = message;
    const now = this.#platform.now();
    const { expires_at, server_time_at } = message;
    if (expires_at) this.#armRefresh(now + expires_at - server_time_at);
    emit(this, 'welcome', message);
    if (this.state === 'live' || !this.#line) return; // a refresh, or a listener has closed us
    this.#misses = 0;
    this.#trouble = null;
    this.#liveSince = now;
    this.#line.watch(message.ping_ms);
    this.#setState('live');
    const waiting = this.#requests.of().filter((entry) => entry.resend);
    const joins = [];
    for (const session of this.#sessions.values()) {
      joins.push(this.#join(session));
      const isAsked = waiting.some((entry) => entry.session === session);
      if (session.stopWanted && !isAsked) session.stop().catch(() => {});
    }
    for (const entry of waiting) this.#transmit(entry);
    Promise.allSettled(joins).then(() => this.#letGo());
  }

  #receiveError({ id, code, message, session_id: sessionId, ...rest }) {
    const { retry_after_ms: retryAfterMs } = rest;
    const error = new TaximeterError(code, message, { ...rest, retryAfterMs, sessionId });
    const entry = this.#requests.get(id);
    if (!entry) emit(this.#sessions.get(sessionId) ?? this, 'error', error);
    else if (this.#platform.now() + retryAfterMs < entry.dueAt) {
      this.#timers.arm(`request ${id}`, retryAfterMs, () => this.#transmit(entry));
    } else entry.reject(error);
  }

  #receiveCredit(message) {
    const isOurs = message.account_id === this.welcome?.account_id;
    if (isOurs) for (const session of this.#sessions.values()) session._credit(message);
    emit(this, 'credit', message);
  }

  /** Settles the requests of a session that has ended. */
  #finish(session, message) {
    this.#sessions.delete(session.sessionId);
    const error = new TaximeterError('session_ended', 'The session has ended.');
    for (const entry of this.#requests.of(session)) {
      if (entry.message.type === 'stop' && message.type === 'stopped') entry.resolve(message);
      else entry.reject(error);
    }
  }

  /** Leaves a draining process at a random instant, to spread clients. */
  #drain(afterMs) {
    this.#timers.arm('drain', this.#platform.random() * afterMs, () => {
      this.#letGo();
      this.#leaving = this.#line; // muted, but it keeps our sessions alive
      this.#leaving?.mute();
      this.#line = null;
      this.#dropped();
      this.#connect();
    });
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
    this.#line = null;
    this.#dropped();
    if (isFinal) this.#fail(error);
    else if (this.#timers.isArmed('drain') && !isHidden()) {
      this.#setState('reconnecting', { code }); // the timer `drain` reconnects
    } else this.#comeBack(error, hadWelcome);
  }

  /** Reports why an attempt failed, and then tries again or gives up. */
  #fail(error) {
    const epoch = this.#epoch;
    emit(this, 'error', error);
    if (epoch !== this.#epoch) return; // a listener has closed the connection
    if (error.retryable) this.#comeBack(error);
    else this.#giveUp('offline', error);
  }

  /** Handles what every lost connection has in common. */
  #dropped() {
    const { now } = this.#platform;
    if (this.#liveSince !== null && now() - this.#liveSince >= PROVEN_MS) this.#attempt = 0;
    this.#liveSince = null;
    this.#timers.disarm('refresh');
    for (const session of this.#sessions.values()) session._freeze();
    const error = new TaximeterError('disconnected', 'The line was lost.', { retryable: true });
    for (const entry of this.#requests.of()) if (!entry.resend) entry.reject(error);
  }

  #comeBack(error, hadWelcome = false) {
    const { closeCode } = error;
    this.#misses = hadWelcome ? 0 : this.#misses + 1;
    const isNews = this.#misses === MISSES_TOLD;
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
    if (isNews && this.#trouble) emit(this, 'error', this.#trouble);
    if (isNow) this.#hurry();
  }

  /** A random delay below a bound that doubles up to `backoffMostMs`. */
  #backoffMs(attempt) {
    const { backoffFirstMs, backoffMostMs } = this.#options;
    return this.#platform.random() * Math.min(backoffMostMs, backoffFirstMs * 2 ** attempt);
  }

  /** Ends a backoff when the page, network or machine is back. */
  #wake(cause) {
    this.#timers.check();
    if (isHidden() && cause !== 'online') return;
    this.#hurry();
    if (this.state === 'live') this.#line.probe();
  }

  #hurry() {
    if (!this.#timers.isArmed('retry')) return;
    this.#timers.disarm('retry');
    this.#connect();
  }

  #giveUp(state, error) {
    this.#epoch += 1;
    this.#line?.close();
    this.#line = null;
    this.#letGo();
    this.#dropped();
    this.#timers.clear();
    this.#misses = 0;
    this.#trouble = null;
    for (const session of this.#sessions.values()) session._giveUp(error);
    this.#setState(state, { code: error.closeCode, error });
    for (const entry of this.#requests.of()) entry.reject(error);
  }

  #setState(state, detail = {}) {
    this.state = state;
    for (const target of [this, ...this.#sessions.values()]) {
      const rest = { code: null, retry_in_ms: null, error: this.#trouble };
      emit(target, 'connection', { state, ...rest, ...detail });
    }
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
      this.#armRefresh(expiresAt);
      emit(this, 'error', error);
    }
  }
}
