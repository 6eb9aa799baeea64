/**
 * A session in the browser: what a page does with it, and its events.
 */

import { OFF, Store } from './store.js';

/**
 * A session in this browser, made by `Taximeter.start`, `retain` or `watch`.
 *
 * The events `session`, `tick`, `free_time`, `limit_warning`, `limit_cleared`,
 * `limit_reached`, `minute` and `stopped` have the server's message as `detail`. The event
 * `error` has a TaximeterError, `connection` a ConnectionChange. A message with a `seq` is
 * delivered once and in order, also when the connection drops in between. After `leave()` there
 * are no events.
 *
 * It is a store too: `subscribe` and `getSnapshot` give its view, by `status`.
 */
export class Session extends Store {
  /** @internal The rest is for the meter and for live.js. */
  _meter;
  _request; // starts, joins or watches the session
  _isOwned; // whether `leave()` alone leaves it
  _watch; // what goes on watching when its last holder is gone
  _figures = null; // once it was to be joined on a live line
  _holds = 0; // requests under way that stop the clock
  _error = null; // why the session cannot start or be joined
  _resolveReady;
  #rejectReady;
  #lastSeq;
  #holders = 0; // calls of retain() without their release()
  #isLeft = false;

  constructor(sessionId, meter, lastSeq) {
    super();
    this._meter = meter;
    this.#lastSeq = lastSeq;
    /** The session's id. */
    this.sessionId = sessionId;
    /** The last `session` message, or null before the first. */
    this.snapshot = null;
    /** The receipt, once the session has ended. */
    this.receipt = null;
    /** True after `stop()`, also when the connection is lost. */
    this.stopWanted = false;
    this.#await();
  }

  #await() {
    /** Resolves with the first snapshot; rejects when the session cannot start. */
    this.ready = new Promise((resolve, reject) => {
      this._resolveReady = resolve;
      this.#rejectReady = reject;
    });
    this.ready.catch(() => {}); // a page may listen to `error` only
  }

  /** @internal Returns the session, as before its failure, if it has failed. */
  _again() {
    if (!this._error) return undefined;
    this._error = null;
    this.stopWanted = false;
    this.#await();
    this._change();
    return this;
  }

  /** `starting`, then active, paused, suspended, stopping or ended. */
  get state() {
    return this._figures?.state ?? 'starting';
  }

  /** The `lastSeq` to keep for `start` after a reload; undefined at first. */
  get lastSeq() {
    return this._figures ? this._figures.lastSeq : this.#lastSeq;
  }

  /** The view on a server, and before a page has taken it over. */
  getServerSnapshot = () => OFF;

  /** Adds a holder, and revives a leave that is due. */
  retain() {
    this.#holders += 1;
    return this;
  }

  /**
   * Removes a holder.
   *
   * If there is none after a macrotask, the session is left. So a component that is unmounted
   * and mounted again at once leaves nothing, and its receipt has no gap.
   */
  release() {
    this.#holders = Math.max(0, this.#holders - 1);
    if (!this.#holders) this._meter._idle(this);
  }

  /** @internal */
  get _isHeld() {
    return this.#holders > 0;
  }

  /**
   * The figures at this instant; null before the first snapshot.
   *
   * They are an estimate from the last figures of the server. Time moves only while the
   * session is active and the line is up. It never passes the limit, and late messages never
   * move it backwards. Only the server knows the charges, which come in increments and from
   * all sessions of the account. So shown credits move to those of the last tick, and never
   * below them.
   */
  now() {
    return this._figures && this._figures.now();
  }

  /** Pauses; the shown clock stops at once. Resolves with the snapshot. */
  pause() {
    return this.#requestStill('pause');
  }

  /** Resumes, also in the grace after a limit; resolves with the snapshot. */
  resume() {
    return this.#ask('resume');
  }

  /**
   * Ends the session; resolves with `stopped`, which contains the receipt.
   *
   * Without a connection the client keeps this wish and carries it out after a reconnect,
   * even if the promise has timed out by then.
   */
  async stop() {
    this.stopWanted = true;
    try {
      return await this.#requestStill('stop');
    } finally {
      if (!this.#holders) this._meter._idle(this);
    }
  }

  /** Holds the clock until the answer, to take back no time. */
  async #requestStill(type) {
    this._figures?.settle();
    this._holds += 1;
    try {
      return await this.#ask(type);
    } finally {
      this._holds -= 1;
    }
  }

  #ask(type) {
    return this._meter._ask({ type, session_id: this.sessionId }, this);
  }

  /** Leaves; without other sockets the session's reconnect grace runs. */
  leave() {
    this._meter._leaveSession(this);
  }

  /** @internal Reports that the session cannot start, or cannot be joined again. */
  _fail(error) {
    if (error.code === 'session_ended') this._figures?.settle({ state: 'ended' });
    this._error = error;
    this.#rejectReady(error);
    this._emit('error', error);
  }

  /** @internal Rejects `ready`: the connection was given up. */
  _giveUp(error) {
    if (!this.snapshot) this._error = error;
    this.#rejectReady(error);
  }

  /** @internal Ends everything here: nothing is heard afterwards. */
  _leave(error) {
    this._freeze();
    this.#rejectReady(error);
    this.#isLeft = true;
    this._era += 1;
    this._change();
  }

  /** @internal */
  _emit(type, detail) {
    if (!this.#isLeft) super._emit(type, detail);
  }

  /** @internal */
  _view() {
    const session_id = this.sessionId;
    if (this.#isLeft) return OFF;
    if (this._error) return { status: 'failed', session_id, error: this._error };
    return this._figures?.view() ?? { status: 'starting', session_id };
  }

  /** @internal Stops the clock while the line is down, until the next message. */
  _freeze() {
    this._figures?.settle({ at: null });
  }
}
