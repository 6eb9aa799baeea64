/**
 * A connection: attempts, losses, and the line on which requests are made.
 */

import { TaximeterError, Unauthorized, comesBackAfter, errorOfClose } from './errors.js';
import { Line } from './line.js';
import { Requests } from './requests.js';
import { Store } from './store.js';
import { Timers } from './timers.js';
import { freshToken } from './tokens.js';

/** After a connection that lived this long the backoff begins anew. */
const PROVEN_MS = 10_000;
/** Attempts in a row without a `welcome` before the client reports `unreachable`. */
const MISSES_TOLD = 3;
/** After as many, the next attempt goes another way. */
const MISSES_BLOCKED = 2;

/** The view of a meter that has not connected. */
const IDLE = Object.freeze({
  connection: 'idle',
  user_id: null,
  account_id: null,
  credits: null,
  usage: null,
  error: null,
});

/** The class of live.js, once it is loaded. */
let Live = null;

/** Promises that live.js is loaded, or cannot be. */
const load = () =>
  import('./live.js').then(
    (found) => {
      Live = found.Live;
    },
    () => {},
  );

const UNLOADED = 'A module of the client cannot be loaded.';

const isHidden = () => globalThis.document?.visibilityState === 'hidden';

/**
 * The connection of a meter, which comes back by itself.
 *
 * live.js does what a first `welcome` does not need. It is loaded when the first line has
 * opened, because a browser may not ask again for a module that it asked for without a network.
 * If it cannot be loaded, the attempt has failed, and the next attempt asks again.
 */
export class Connection extends Store {
  /** @internal The rest is for subclass and upkeep, too. */
  _options;
  _platform;
  _sessions = new Map(); // by session id: the sessions to join again after a reconnect
  _requests;
  _timers; // `retry`, `drain`, `refresh`, `watchdog`, and a `join` for each session
  _live = null; // once live.js is loaded
  _line = null;
  _leaving = null; // the line to a draining process, until another process has our sessions
  _token; // the newest one, for the next line or renewal
  _lastToken; // that of the last `welcome`
  _login = 0; // rises with each user whom the page has asked for
  _usage = null; // the last `usage` message
  _isBlocked = false; // whether the next attempt goes without a WebSocket
  #listening = null; // ends our listening to the page
  #error = null; // why there is no connection
  #credits = null;
  #liveSince;
  #attempt = 0; // waits since a connection last lived for PROVEN_MS
  #misses = 0; // attempts in a row without a `welcome`
  #trouble = null; // the `unreachable` error, once the client has reported it
  #refusal = null; // the server's error for our token on this line
  #epoch = 0; // number of the current connection: a late token of an older one is dropped

  /** The view on a server, and before a page has taken it over. */
  getServerSnapshot = () => IDLE;

  constructor({ url = '/v1/ws', token, ...options } = {}) {
    super();
    this._options = {
      requestTimeoutMs: 10_000,
      backoffFirstMs: 500,
      backoffMostMs: 10_000,
      ...options,
      url,
      token,
    };
    this._platform = {
      WebSocket: globalThis.WebSocket,
      now: () => performance.now(),
      random: () => Math.random(),
      setTimeout: (callback, delayMs) => setTimeout(callback, delayMs),
      clearTimeout: (timer) => clearTimeout(timer),
      ...options.platform,
    };
    this._timers = new Timers(this._platform);
    this._requests = new Requests(this._platform, this._options.requestTimeoutMs);
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
    this._begin();
    this._hurry();
  }

  _begin() {
    if (!['idle', 'offline'].includes(this.state)) return;
    if (!this.#listening) this.#listen();
    this._connect();
  }

  #listen() {
    this.#listening = new AbortController();
    const { document } = globalThis;
    const hear = (target, types, listener) => {
      for (const type of types) {
        target?.addEventListener?.(type, listener, { signal: this.#listening.signal });
      }
    };
    const wake = (event) => this.#wake(event);
    hear(globalThis, ['online', 'pageshow'], wake);
    hear(document, ['visibilitychange', 'resume'], wake);
    hear(globalThis, ['pagehide'], (event) => this.#hide(event));
  }

  /**
   * Hangs up when the page is left.
   *
   * The socket of a page in the back/forward cache would stay open, and its sessions would run
   * where no one sees them. They are joined again when the page is back.
   */
  #hide({ persisted }) {
    this._live?.stopAll();
    if (!persisted || this.state === 'offline') return;
    this.#epoch += 1; // drops a token that comes later
    this._line?.close();
    this._letGo();
    this._dropped();
    this._timers.disarm('drain');
    this._timers.arm('retry', this._options.backoffMostMs, () => this._connect());
    this.#setState('reconnecting');
  }

  /** Ends a backoff when the page, network or machine is back. */
  #wake(event) {
    this._timers.check();
    if (isHidden() && event.type !== 'online') return;
    this._hurry();
    if (this.state === 'live') this._live.wake(event);
  }

  /** Ends a backoff. */
  _hurry() {
    if (this._timers.isArmed('retry')) this._connect();
  }

  async _connect() {
    const epoch = ++this.#epoch;
    this._timers.disarm('retry');
    this.#refusal = null;
    this.#setState(this.welcome ? 'reconnecting' : 'connecting');
    try {
      const token = await this._freshToken();
      if (epoch !== this.#epoch) return;
      if (!token) throw new Unauthorized('There is no token.');
      const WebSocket = await this.#socket();
      if (epoch !== this.#epoch) return;
      this._line = this.#dial(token, this._options.tabs?.(WebSocket, token) ?? WebSocket);
    } catch (error) {
      if (epoch === this.#epoch) this._fail(error);
    }
  }

  async _freshToken() {
    const { token, requestTimeoutMs } = this._options;
    const epoch = this.#epoch;
    const fresh = await freshToken(token, this._platform, requestTimeoutMs);
    if (epoch === this.#epoch) this._token = fresh;
    return fresh;
  }

  /** What to connect with: the same messages go over a stream where no WebSocket gets through. */
  async #socket() {
    const { fallback } = this._options;
    const { WebSocket } = this._platform;
    if (!this._isBlocked || fallback === null) return WebSocket;
    if (fallback) return fallback;
    const found = await import('./fallback.js').catch(() => null); // no network, perhaps
    return found?.StreamSocket ?? WebSocket;
  }

  #dial(token, WebSocket) {
    const timeoutMs = this._options.requestTimeoutMs;
    const means = { platform: this._platform, timers: this._timers, timeoutMs, WebSocket };
    let loading = null; // meanwhile messages wait, in their order
    const line = new Line(this._options.url, means, {
      opened: () => {
        this._live ??= Live && new Live(this);
        if (!this._live) {
          loading = load().then(() => {
            this._live ??= Live && new Live(this);
            loading = null;
          });
        }
        this._ask({ type: 'auth', token }, null, false).catch((error) => {
          if (line === this._line) this.#refusal = error; // next the server closes the line
        });
      },
      received: (message) => {
        if (!loading || message.type === 'error') return this.#receive(message);
        // The line lives: only the module may be late now.
        this._timers.arm('watchdog', timeoutMs, () => line.declareDead(UNLOADED));
        loading.then(() => line === this._line && this.#receive(message));
      },
      lost: (code, reason) => this.#lost(code, reason),
    });
    return line;
  }

  /** Makes a request, once the line is live; promises its answer. */
  _ask(message, session, resend = true) {
    const entry = this._requests.add(message, session, resend);
    if (['offline', 'closed'].includes(this.state)) {
      entry.reject(new TaximeterError(this.state, 'There is no connection.'));
    } else if (this.state === 'live' || message.type === 'auth') this._transmit(entry);
    return entry.promise;
  }

  /** Sends a request; on a full line it times out or is resent. */
  _transmit({ message }) {
    if (this._requests.get(message.id)) this._line?.send(message);
  }

  #receive(message) {
    this._live?.hear(message);
    if (message.type === 'error') return this.#receiveError(message);
    if (!this._live) return this._line?.declareDead(UNLOADED);
    if (message.type === 'welcome') this.#receiveWelcome(message);
    else this._live.take(message);
    return this._change();
  }

  #receiveWelcome(message) {
    this.welcome = message;
    this._noteCredits(message);
    this._emit('welcome', message);
    this._requests.get(message.id)?.resolve(message);
    if (this.state === 'live' || !this._line) return; // a refresh, or a listener has closed us
    this.#misses = 0;
    this.#trouble = null;
    this.#liveSince = this._platform.now();
    this.#setState('live');
    this._live?.begin(); // unless a listener has logged out
  }

  #receiveError({ id, code, message, session_id: sessionId, ...rest }) {
    const { retry_after_ms: retryAfterMs } = rest;
    const error = new TaximeterError(code, message, { ...rest, retryAfterMs, sessionId });
    const entry = this._requests.get(id);
    if (!entry) (this._sessions.get(sessionId) ?? this)._emit('error', error);
    else if (this._platform.now() + retryAfterMs < entry.dueAt) {
      this._timers.arm(`request ${id}`, retryAfterMs, () => this._transmit(entry));
    } else entry.reject(error);
  }

  _letGo() {
    this._leaving?.close();
    this._leaving = null;
  }

  #lost(code, reason) {
    // The server would refuse the same token again; a function may give a better one.
    const isFixed = typeof this._options.token !== 'function';
    const isRefused = isFixed && (code === 4002 || this.#refusal?.retryable === false);
    const isFinal = isRefused || !comesBackAfter(code);
    const error = errorOfClose(code, reason, !isFinal, this.#refusal);
    this._dropped();
    if (isFinal) this._fail(error);
    else if (this._timers.isArmed('drain') && !isHidden()) {
      this.#setState('reconnecting', { code }); // the timer `drain` reconnects
    } else this.#comeBack(error);
  }

  /** Reports why an attempt failed, and then tries again or gives up. */
  _fail(error) {
    const epoch = this.#epoch;
    this._emit('error', error);
    if (epoch !== this.#epoch) return; // a listener has closed the connection
    if (error.retryable) this.#comeBack(error);
    else this._giveUp('offline', error);
  }

  /** Handles what every lost connection has in common. */
  _dropped() {
    const isProven = this._platform.now() - this.#liveSince >= PROVEN_MS;
    if (this.state === 'live' && isProven) this.#attempt = 0;
    this._line = null;
    this._timers.disarm('refresh');
    for (const session of this._sessions.values()) session._freeze();
    const error = new TaximeterError('disconnected', 'The line was lost.', { retryable: true });
    for (const entry of this._requests.of()) if (!entry.resend) entry.reject(error);
  }

  #comeBack(error) {
    const { closeCode } = error;
    if (this.state !== 'live') this.#misses += 1;
    const isNews = this.#misses === MISSES_TOLD;
    if (this.#misses >= MISSES_BLOCKED) this._isBlocked = !this._isBlocked;
    if (this.#misses >= MISSES_TOLD) {
      const details = { retryable: true, closeCode, cause: error };
      this.#trouble = new TaximeterError('unreachable', error.message, details);
    }
    // A hidden page makes its first attempt at once: its timer may take a minute, and a
    // session does not wait for its client for a minute.
    const isNow = isHidden() && this.#attempt === 0;
    const delayMs = isNow ? 0 : this._backoffMs(this.#attempt);
    this.#attempt += 1;
    this._timers.disarm('drain');
    this._timers.arm('retry', delayMs, () => this._connect());
    this.#setState('reconnecting', { code: closeCode, retry_in_ms: delayMs });
    if (isNews && this.#trouble) this._emit('error', this.#trouble);
    if (isNow) this._hurry();
  }

  /** A random delay below a bound that doubles up to `backoffMostMs`. */
  _backoffMs(attempt) {
    const { backoffFirstMs, backoffMostMs } = this._options;
    return this._platform.random() * Math.min(backoffMostMs, backoffFirstMs * 2 ** attempt);
  }

  _giveUp(state, error) {
    this.#epoch += 1;
    this._line?.close();
    this._letGo();
    this._dropped();
    this._timers.clear();
    this._live?.reset();
    this.#misses = 0;
    this.#trouble = null;
    for (const session of this._sessions.values()) session._giveUp(error);
    for (const entry of this._requests.of()) entry.reject(error);
    this.#setState(state, { code: error.closeCode, error: state === 'idle' ? null : error });
  }

  /** @internal Forgets the user. */
  _logOut(token) {
    this._live?.stopAll();
    this._live = null;
    this.#listening?.abort();
    this.#listening = null;
    this._era += 1;
    this._options.token = token;
    this.welcome = this.#credits = this._usage = this._lastToken = null;
  }

  _noteCredits({ credits }) {
    this.#credits = Number(credits);
  }

  #setState(state, detail = {}) {
    this.state = state;
    this.#error = detail.error ?? this.#trouble;
    for (const target of [this, ...this._sessions.values()]) {
      const rest = { code: null, retry_in_ms: null, error: this.#trouble };
      target._emit('connection', { state, ...rest, ...detail });
    }
  }

  _view() {
    const { user_id = null, account_id = null } = this.welcome ?? {};
    const [credits, usage, error] = [this.#credits, this._usage, this.#error];
    return { connection: this.state, user_id, account_id, credits, usage, error };
  }
}
