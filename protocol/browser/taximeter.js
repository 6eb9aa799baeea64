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

import { TaximeterError, comesBackAfter, errorOfClose } from './errors.js';
import { Session, emit } from './session.js';
import { Timers } from './timers.js';

export { Session, TaximeterError, comesBackAfter };

/** The defaults of the options; all are milliseconds. */
const REQUEST_TIMEOUT_MS = 10_000;
const BACKOFF_FIRST_MS = 500;
const BACKOFF_MOST_MS = 10_000;

/** A connection that lived this long has proved itself: the next backoff begins anew. */
const PROVEN_MS = 10_000;
/** More than this unsent means a line that does not drain: nothing is piled on top of it. */
const UNSENT_MOST_BYTES = 65_536;

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
  #leaving = null; // the line to a process that drains, until another one has our sessions
  #attempt = 0; // how many times we have waited since a connection last proved itself
  #epoch = 0; // which connection is the current one: a late token of an older one is dropped
  #liveSince = null;
  #heardAt = 0;
  #asked = false; // whether a ping of ours waits for anything at all to be heard
  #timers; // retry, drain, refresh, watchdog
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
    const ask = (type, from) => this.#ask({ type, session_id: sessionId }, from);
    const link = { now: this.#platform.now, request: ask, leave: (from) => this.#leave(from) };
    const session = this.#sessions.get(sessionId) ?? new Session(sessionId, link, lastSeq);
    this.#sessions.set(sessionId, session);
    session._request = request;
    if (this.state === 'live') this.#join(session);
    else this.connect();
    return session;
  }

  async #join(session, attempt = 0) {
    if (this.state !== 'live' || this.#sessions.get(session.sessionId) !== session) return;
    try {
      await this.#ask(session._joining(), session, { resend: false });
    } catch (error) {
      if (['disconnected', 'closed'].includes(error.code)) return; // joined on coming back
      // A session that runs must not be lost to a server that is busy for a moment; nor may
      // one be forgotten that starts after all. A refused start is the caller's to repeat.
      if (error.code === 'timeout' || (error.retryable && session.snapshot)) {
        const again = () => this.#join(session, attempt + 1);
        this.#platform.setTimeout(again, this.#backoffMs(attempt));
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
    this.#timers.arm('watchdog', this.#options.requestTimeoutMs, () => this.#declareDead());
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
      const details = { retryable: true, cause };
      throw new TaximeterError('unauthenticated', 'No token could be had.', details);
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
    const joins = [];
    for (const session of this.#sessions.values()) {
      joins.push(this.#join(session));
      const isAsked = waiting.some((entry) => entry.session === session);
      if (session.stopWanted && !isAsked) session.stop().catch(() => {});
    }
    for (const entry of waiting) this.#transmit(entry.message);
    Promise.allSettled(joins).then(() => this.#letGo());
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
    this.#timers.arm('drain', this.#platform.random() * afterMs, () => {
      this.#letGo();
      this.#leaving = this.#socket; // not heard any more, but it keeps our sessions alive
      this.#socket = null;
      this.#dropped();
      this.#connect();
    });
  }

  #letGo() {
    this.#leaving?.close(1000);
    this.#leaving = null;
  }

  #lost(code, reason) {
    this.#socket = null;
    this.#dropped();
    if (!comesBackAfter(code)) {
      const error = errorOfClose(code, reason);
      emit(this, 'error', error);
      this.#giveUp('offline', error);
    } else if (!this.#timers.isArmed('drain')) this.#comeBack(code);
    else this.#setState('reconnecting', { code }); // at the instant that the drain has set
  }

  /** What is true of every lost connection, whoever ended it. */
  #dropped() {
    const { now } = this.#platform;
    if (this.#liveSince !== null && now() - this.#liveSince >= PROVEN_MS) this.#attempt = 0;
    this.#liveSince = null;
    this.#timers.disarm('refresh', 'watchdog');
    for (const session of this.#sessions.values()) session._freeze();
    const error = new TaximeterError('disconnected', 'The line was lost.', { retryable: true });
    for (const entry of [...this.#pending.values()]) if (!entry.resend) entry.reject(error);
  }

  #comeBack(code) {
    const delayMs = this.#backoffMs(this.#attempt);
    this.#attempt += 1;
    this.#timers.arm('retry', delayMs, () => this.#connect());
    this.#setState('reconnecting', { code, retry_in_ms: delayMs });
  }

  /** Full jitter: anything from nothing to a bound that doubles up to the most. */
  #backoffMs(attempt) {
    const { backoffFirstMs, backoffMostMs } = this.#options;
    return this.#platform.random() * Math.min(backoffMostMs, backoffFirstMs * 2 ** attempt);
  }

  #hurry() {
    const isHidden = globalThis.document?.visibilityState === 'hidden';
    if (isHidden || !this.#timers.isArmed('retry')) return;
    this.#timers.disarm('retry');
    this.#connect();
  }

  #giveUp(state, error) {
    this.#epoch += 1;
    this.#hangUp();
    this.#letGo();
    this.#dropped();
    this.#timers.disarm('retry', 'drain');
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
    this.#timers.arm('refresh', lifeMs - leadMs, async () => {
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
    this.#timers.disarm('watchdog');
    if (!(pingMs > 0)) return;
    const dueAt = this.#platform.now() + pingMs;
    this.#timers.arm('watchdog', pingMs, () => {
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
}
