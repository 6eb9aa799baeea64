/**
 * What a session's messages say, and what its clock shows between two of them.
 */

/** After a reconnect, a clock ahead by less than this waits. */
const HOLD_MS = 1_500;
/** The longest glide of shown credits to those of a tick. */
const GLIDE_MS = 1_000;

/** The notices that a view has. */
const NOTICES_MOST = 8;

/** The figures and notices of one session, from its first join on. */
export class Figures {
  #session;
  #base = null; // the latest figures, and the instant `at` of our clock when they held
  #told = 0; // the elapsed_ms that the server sent last
  #shown = 0; // the highest elapsed_ms that now() has given: the clock does not step back
  #delivered; // the seq of the last notice that listeners have got
  #joinedAt; // the seq of the first snapshot: earlier notices are no news
  #glide = null; // { from, at, ms }: how shown credits move to those of the last tick
  #tickAt = -Infinity; // when the last tick came
  #notices = [];
  #stopped = null; // the notice
  #grace = null; // of the last limit_reached
  #graceEndsAt; // by our clock

  constructor(session) {
    this.#session = session;
    this.#delivered = session.lastSeq;
  }

  /** Null before the first snapshot. */
  get state() {
    return this.#base?.state;
  }

  get lastSeq() {
    const seqs = [this.#delivered, this.#joinedAt].filter((seq) => seq !== undefined);
    return seqs.length ? Math.max(...seqs) : undefined;
  }

  /** The figures at this instant, as `Session.now()` gives them. */
  now() {
    if (!this.#base) return null;
    const reading = this.#readingAfter(this.#run());
    this.#shown = reading.elapsed_ms;
    const isInGrace = reading.state === 'stopping' && this.#grace;
    const leftMs = isInGrace ? Math.max(0, this.#graceEndsAt - this.#clock()) : null;
    return { ...reading, grace_left_ms: leftMs };
  }

  /** The session's view; null before the first snapshot. */
  view() {
    const { sessionId: session_id, snapshot, receipt } = this.#session;
    if (!this.#base) return null;
    if (this.state === 'ended') {
      const { reason = null, limit = null } = this.#stopped ?? {};
      const notices = this.#notices;
      return { status: 'ended', session_id, reason, limit, receipt, notices };
    }
    const { state, grace_left_ms: _, ...figures } = this.now();
    const { kind, credits_per_minute, limits, ends_at } = snapshot;
    return {
      status: state === 'active' ? 'running' : state,
      session_id,
      live: this.#base.at !== null,
      ...{ kind, credits_per_minute, limits, ends_at, notices: this.#notices },
      ...figures,
      ...(state === 'stopping' && this.#grace),
    };
  }

  /** Takes a change of the account other than this session's time. */
  credit({ credits }) {
    this.#glide = null;
    this.settle({ credits: Number(credits) });
    this.#session._change();
  }

  /** Takes a message of this session from the server. */
  receive(message) {
    if (message.type === 'session') return this.#receiveSnapshot(message);
    if (message.seq !== undefined) {
      if (this.#deliver(message)) this.#apply(message);
      else return undefined;
    }
    if (message.type === 'tick' && !this.#receiveTick(message)) return undefined;
    return this.#session._emit(message.type, message);
  }

  #clock() {
    return this.#session._meter._platform.now();
  }

  #receiveSnapshot(message) {
    if (!this.#isLate(message)) this.#shown = 0;
    Object.assign(this.#session, { snapshot: message, _error: null });
    this.#joinedAt ??= message.seq;
    this.#glide = null;
    this.#base = { speed: message.speed ?? 1, state: message.state };
    this.#rebase(message);
    if (message.state === 'stopping') this.#joinGrace(message);
    // The snapshot contains the effects of missed notices: dispatch them, apply nothing.
    for (const notice of [...(message.missed ?? [])].sort((a, b) => a.seq - b.seq)) {
      if (!this.#deliver(notice, message.server_time_at)) continue;
      this.#session._emit(notice.type, { session_id: this.#session.sessionId, ...notice });
    }
    this.#session._resolveReady(message);
    this.#session._emit('session', message);
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
    const [from, at] = [this.#creditsShown(), this.#clock()];
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
      this.#graceEndsAt = this.#clock() + endsAt - serverTimeAt;
    } else if (type === 'stopped') {
      this.#stopped = notice;
      this.#session.receipt = notice.receipt;
    }
    return true;
  }

  /** Takes the end of a grace that began before this page came: nothing says when. */
  #joinGrace({ ends_at: endsAt, server_time_at: serverTimeAt }) {
    if (this.#grace || !endsAt) return;
    const graceMs = endsAt - serverTimeAt;
    this.#grace = { grace_ms: graceMs, grace_ends_at: endsAt };
    this.#graceEndsAt = this.#clock() + graceMs;
  }

  /** Applies a notice to the figures, until the next snapshot or tick. */
  #apply({ type, free_remaining_ms, paid, limit, elapsed_ms, receipt }) {
    if (!this.#base) return;
    if (type === 'free_time') this.settle({ free_remaining_ms, paid });
    if (type === 'limit_reached') this.#halt('stopping', elapsed_ms, { limit, remaining_ms: 0 });
    if (type === 'stopped') this.#halt('ended', receipt?.elapsed_ms);
  }

  /** Stops the clock at the `elapsed_ms` that the server gives. */
  #halt(state, elapsed_ms, corrections) {
    this.settle({ state, ...corrections });
    if (elapsed_ms !== undefined) this.#base.elapsed_ms = this.#told = elapsed_ms;
  }

  /** Counted time since the last figures; 0 while the clock stands. */
  #run() {
    const { state, at, elapsed_ms, remaining_ms, speed } = this.#base;
    if (state !== 'active') return 0;
    const isStill = at === null || this.#session._holds > 0;
    const run = isStill ? 0 : Math.max(0, (this.#clock() - at) * speed);
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
    return from + (this.#base.credits - from) * Math.min(1, (this.#clock() - at) / ms);
  }

  #readingAfter(run) {
    const { at: _, ...base } = this.#base;
    const { elapsed_ms, free_remaining_ms, remaining_ms } = base;
    const hasPrice = Number(this.#session.snapshot?.credits_per_minute ?? 0) > 0;
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
  settle(corrections = {}) {
    if (!this.#base) return;
    const { credits } = this.#base; // not the shown credits, which glide towards these
    const at = this.#base.at === null ? null : this.#clock();
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
      at: this.#clock(),
    };
  }
}
