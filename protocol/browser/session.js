/**
 * A session in the browser: events, and figures between two ticks.
 */

import { OFF, Store } from './store.js';

/** After a reconnect, a clock ahead by less than this waits. */
const HOLD_MS = 1_500;
/** The longest glide of shown credits to those of a tick. */
const GLIDE_MS = 1_000;

/** The notices that a view has. */
const NOTICES_MOST = 8;

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
  #meter;
  #base = null; // the latest figures, and the instant `at` of our clock when they held
  #told = 0; // the elapsed_ms that the server sent last
  #shown = 0; // the highest elapsed_ms that now() has given: the clock does not step back
  #delivered; // the seq of the last notice that listeners have got
  #joinedAt; // the seq of the first snapshot: earlier notices are no news
  #glide = null; // { from, at, ms }: how shown credits move to those of the last tick
  #tickAt = -Infinity; // when the last tick came
  #holds = 0; // requests under way that stop the clock
  #holders = 0; // calls of retain() without their release()
  #isLeft = false;
  #error = null; // why the session cannot start or be joined
  #notices = [];
  #stopped = null; // the notice
  #grace = null; // of the last limit_reached
  #graceEndsAt; // by our clock
  #resolveReady;
  #rejectReady;

  constructor(sessionId, meter, lastSeq) {
    super();
    this.#meter = meter;
    this.#delivered = lastSeq;
    /** The session's id. */
    this.sessionId = sessionId;
    /** The last `session` message, or null before the first. */
    this.snapshot = null;
    /** The receipt, once the session has ended. */
    this.receipt = null;
    /** True after `stop()`, also when the connection is lost. */
    this.stopWanted = false;
    /** Resolves with the first snapshot; rejects when the session cannot start. */
    this.ready = new Promise((resolve, reject) => {
      this.#resolveReady = resolve;
      this.#rejectReady = reject;
    });
    this.ready.catch(() => {}); // a page may listen to `error` only
    /** @internal The request that starts, joins or watches the session. */
    this._request = null;
  }

  /** `starting`, then active, paused, suspended, stopping or ended. */
  get state() {
    return this.#base?.state ?? 'starting';
  }

  /** The `lastSeq` to keep for `start` after a reload; undefined at first. */
  get lastSeq() {
    const seqs = [this.#delivered, this.#joinedAt].filter((seq) => seq !== undefined);
    return seqs.length ? Math.max(...seqs) : undefined;
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
    if (!this.#holders) this.#meter._idle(this);
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
    if (!this.#base) return null;
    const reading = this.#readingAfter(this.#run());
    this.#shown = reading.elapsed_ms;
    const isInGrace = reading.state === 'stopping' && this.#grace;
    const leftMs = isInGrace ? Math.max(0, this.#graceEndsAt - this.#meter._platform.now()) : null;
    return { ...reading, grace_left_ms: leftMs };
  }

  /** Pauses; the shown clock stops at once. Resolves with the snapshot. */
  pause() {
    return this.#requestStill('pause');
  }

  /** Resumes, also in the grace after a limit; resolves with the snapshot. */
  resume() {
    return this.#request('resume');
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
      if (!this.#holders) this.#meter._idle(this);
    }
  }

  #request(type) {
    return this.#meter._ask({ type, session_id: this.sessionId }, this);
  }

  /** Holds the clock until the answer, to take back no time. */
  async #requestStill(type) {
    this.#settle({});
    this.#holds += 1;
    try {
      return await this.#request(type);
    } finally {
      this.#holds -= 1;
    }
  }

  /** Leaves; without other sockets the session's reconnect grace runs. */
  leave() {
    this.#meter._leaveSession(this);
  }

  /** @internal The request to join again, with the last notice that was delivered. */
  _joining() {
    this.#error = null;
    this._change();
    return { ...this._request, last_seq: this.lastSeq }; // JSON omits undefined fields
  }

  /** @internal Reports that the session cannot start, or cannot be joined again. */
  _fail(error) {
    if (error.code === 'session_ended') this.#settle({ state: 'ended' });
    this.#error = error;
    this.#rejectReady(error);
    this._emit('error', error);
  }

  /** @internal Rejects `ready`: the connection was given up. */
  _giveUp(error) {
    if (!this.#base) this.#error = error;
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
    if (this.#error) return { status: 'failed', session_id, error: this.#error };
    if (!this.#base) return { status: 'starting', session_id };
    if (this.state === 'ended') {
      const { reason = null, limit = null } = this.#stopped ?? {};
      return { status: 'ended', session_id, reason, limit, receipt: this.receipt };
    }
    const { state, grace_left_ms: _, ...figures } = this.now();
    const { kind, credits_per_minute, limits, ends_at } = this.snapshot;
    return {
      status: state === 'active' ? 'running' : state,
      session_id,
      live: this.#base.at !== null,
      ...{ kind, credits_per_minute, limits, ends_at, notices: this.#notices },
      ...figures,
      ...(state === 'stopping' && this.#grace),
    };
  }

  /** @internal Stops the clock while the line is down, until the next message. */
  _freeze() {
    this.#settle({ at: null });
  }

  /** @internal Takes a change of the account other than this session's time. */
  _credit({ credits }) {
    this.#glide = null;
    this.#settle({ credits: Number(credits) });
    this._change();
  }

  /** @internal Takes a message of this session from the server. */
  _receive(message) {
    if (message.type === 'session') return this.#receiveSnapshot(message);
    if (message.seq !== undefined) {
      if (this.#deliver(message)) this.#apply(message);
      else return undefined;
    }
    if (message.type === 'tick' && !this.#receiveTick(message)) return undefined;
    return this._emit(message.type, message);
  }

  #receiveSnapshot(message) {
    if (!this.#isLate(message)) this.#shown = 0;
    this.snapshot = message;
    this.#error = null;
    this.#joinedAt ??= message.seq;
    this.#glide = null;
    this.#base = { speed: message.speed ?? 1, state: message.state };
    this.#rebase(message);
    // The snapshot contains the effects of missed notices: dispatch them, apply nothing.
    for (const notice of [...(message.missed ?? [])].sort((a, b) => a.seq - b.seq)) {
      if (!this.#deliver(notice, message.server_time_at)) continue;
      this._emit(notice.type, { session_id: this.sessionId, ...notice });
    }
    this.#resolveReady(message);
    this._emit('session', message);
  }

  /**
   * Whether a snapshot is behind the clock only because it is late.
   *
   * A late snapshot comes from a line that stalled, or from another process. Any other
   * snapshot is a correction, which the clock follows.
   */
  #isLate({ state, elapsed_ms, speed = 1 }) {
    if (this.#base?.state !== 'active' || state !== 'active') return false;
    const wasCut = this.#base.at === null;
    return wasCut ? this.#shown - elapsed_ms < HOLD_MS * speed : elapsed_ms >= this.#told;
  }

  /** Takes a tick, unless newer figures are known; returns whether it did. */
  #receiveTick(tick) {
    if (!this.#base || tick.elapsed_ms < this.#told) return false;
    const [from, at] = [this.#creditsShown(), this.#meter._platform.now()];
    const ms = Math.min(GLIDE_MS, at - this.#tickAt);
    this.#glide = Number(tick.credits) < from && ms > 0 ? { from, at, ms } : null;
    this.#tickAt = at;
    this.#rebase(tick);
    return true;
  }

  /** Notes a notice; returns whether it is new: numbers only rise. */
  #deliver(notice, serverTimeAt = notice.stopped_at) {
    const { seq, type, stopped_at, grace_ms } = notice;
    if (seq <= (this.#delivered ?? -1)) return false;
    this.#delivered = seq;
    this.#notices = [...this.#notices.slice(1 - NOTICES_MOST), notice];
    if (type === 'limit_reached') {
      const endsAt = stopped_at + grace_ms;
      this.#grace = { stopped_at, grace_ms, grace_ends_at: endsAt };
      this.#graceEndsAt = this.#meter._platform.now() + endsAt - serverTimeAt;
    } else if (type === 'stopped') {
      this.#stopped = notice;
      this.receipt = notice.receipt;
    }
    return true;
  }

  /** Applies a notice to the figures, until the next snapshot or tick. */
  #apply({ type, free_remaining_ms, paid, limit, elapsed_ms, receipt }) {
    if (!this.#base) return;
    if (type === 'free_time') this.#settle({ free_remaining_ms, paid });
    if (type === 'limit_reached') this.#halt('stopping', elapsed_ms, { limit, remaining_ms: 0 });
    if (type === 'stopped') this.#halt('ended', receipt?.elapsed_ms);
  }

  /** Stops the clock at the `elapsed_ms` that the server gives. */
  #halt(state, elapsed_ms, corrections) {
    this.#settle({ state, ...corrections });
    if (elapsed_ms !== undefined) this.#base.elapsed_ms = this.#told = elapsed_ms;
  }

  /** Counted time since the last figures; 0 while the clock stands. */
  #run() {
    const { state, at, elapsed_ms, remaining_ms, speed } = this.#base;
    if (state !== 'active') return 0;
    const isStill = at === null || this.#holds > 0;
    const run = isStill ? 0 : Math.max(0, (this.#meter._platform.now() - at) * speed);
    // A clock that is ahead waits until the server's figures reach it. After a line has
    // stalled, the clock catches up with the newest tick.
    return Math.min(
      Math.max(run, this.#shown - elapsed_ms),
      Math.max(0, remaining_ms ?? Infinity),
    );
  }

  #creditsShown() {
    if (!this.#glide) return this.#base.credits;
    const { from, at, ms } = this.#glide;
    return from + (this.#base.credits - from) * Math.min(1, (this.#meter._platform.now() - at) / ms);
  }

  #readingAfter(run) {
    const { at: _, ...base } = this.#base;
    const { elapsed_ms, free_remaining_ms, remaining_ms } = base;
    const hasPrice = Number(this.snapshot?.credits_per_minute ?? 0) > 0;
    const isFreeOver = free_remaining_ms > 0 && run > free_remaining_ms;
    return {
      ...base,
      elapsed_ms: elapsed_ms + run,
      free_remaining_ms: Math.max(0, free_remaining_ms - run),
      paid: base.paid || (isFreeOver && hasPrice),
      credits: this.#creditsShown(),
      remaining_ms: remaining_ms === null ? null : Math.max(0, remaining_ms - run),
    };
  }

  /** Makes the present estimate, with corrections, the base of further estimates. */
  #settle(corrections) {
    if (!this.#base) return;
    const { credits } = this.#base; // not the shown credits, which glide towards these
    const at = this.#base.at === null ? null : this.#meter._platform.now();
    this.#base = { ...this.#readingAfter(this.#run()), credits, at, ...corrections };
  }

  #rebase({ elapsed_ms, free_remaining_ms, paid, credits, remaining_ms, limit }) {
    this.#told = elapsed_ms;
    this.#base = {
      ...this.#base,
      elapsed_ms,
      free_remaining_ms: free_remaining_ms ?? 0,
      paid,
      credits: Number(credits),
      remaining_ms: remaining_ms ?? null,
      limit: limit ?? null,
      at: this.#meter._platform.now(),
    };
  }
}
