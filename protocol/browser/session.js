/**
 * A session as the browser sees it: its news, and its figures between two ticks.
 */

/** After a reconnect, a clock that is ahead by less than this waits instead of stepping back. */
const HOLD_MS = 1_500;
/** For how long at most the credits shown move to what a tick has said. */
const GLIDE_MS = 1_000;

/** Dispatches an event whose `detail` is what it is about. */
export function emit(target, type, detail) {
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
  #told = 0; // the elapsed_ms that the server sent last
  #shown = 0; // the furthest elapsed_ms that now() has given: the clock does not step back
  #delivered; // the seq of the last notice that listeners were given
  #joinedAt; // the seq of the first snapshot: what came before it is no news
  #glide = null; // { from, at, ms }: how the credits shown move to those of the last tick
  #tickAt = -Infinity; // when the last tick came
  #holds = 0; // requests under way that stop the clock
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
   * past the limit, and not backwards for the sake of late news. Credits are charged in
   * increments, which only the server knows, and by all sessions of the account: so they
   * move to what a tick has said, and never below it.
   */
  now() {
    if (!this.#base) return null;
    const reading = this.#readingAfter(this.#run());
    this.#shown = reading.elapsed_ms;
    return reading;
  }

  /** Stops the clock, on the screen at once; resolves with the snapshot. */
  pause() {
    return this.#requestStill('pause');
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
    return this.#requestStill('stop');
  }

  /** What the clock shows while the answer is on its way would have to be taken back. */
  async #requestStill(type) {
    this.#settle({});
    this.#holds += 1;
    try {
      return await this.#link.request(type, this);
    } finally {
      this.#holds -= 1;
    }
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

  /** @internal The connection was given up before the first snapshot. */
  _giveUp(error) {
    this.#rejectReady(error);
  }

  /** @internal The line is down: the clock stands still until the server speaks again. */
  _freeze() {
    this.#settle({ at: null });
  }

  /** @internal The account has changed by something other than this session's time. */
  _credit({ credits }) {
    this.#glide = null;
    this.#settle({ credits: Number(credits) });
  }

  /** @internal A message of this session from the server. */
  _receive(message) {
    if (message.type === 'session') return this.#receiveSnapshot(message);
    if (message.seq !== undefined) {
      if (this.#deliver(message)) this.#apply(message);
      else return undefined;
    }
    if (message.type === 'tick' && !this.#receiveTick(message)) return undefined;
    return emit(this, message.type, message);
  }

  #receiveSnapshot(message) {
    if (!this.#isLate(message)) this.#shown = 0;
    this.snapshot = message;
    this.#joinedAt ??= message.seq;
    this.#glide = null;
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

  /**
   * Whether a snapshot is behind the clock only because it is late: of a line that stalled, or
   * of another process. Any other snapshot is a correction, which the clock follows.
   */
  #isLate({ state, elapsed_ms, speed = 1 }) {
    if (this.#base?.state !== 'active' || state !== 'active') return false;
    const wasCut = this.#base.at === null;
    return wasCut ? this.#shown - elapsed_ms < HOLD_MS * speed : elapsed_ms >= this.#told;
  }

  /** Takes a tick, unless something newer is known. */
  #receiveTick(tick) {
    if (!this.#base || tick.elapsed_ms < this.#told) return false;
    const [from, at] = [this.#creditsShown(), this.#link.now()];
    const ms = Math.min(GLIDE_MS, at - this.#tickAt);
    this.#glide = Number(tick.credits) < from && ms > 0 ? { from, at, ms } : null;
    this.#tickAt = at;
    this.#rebase(tick);
    return true;
  }

  /** Whether a notice is news; the numbers of a session only rise. */
  #deliver(notice) {
    if (notice.seq <= (this.#delivered ?? -1)) return false;
    this.#delivered = notice.seq;
    return true;
  }

  /** What a notice changes in the figures, until the next snapshot or tick. */
  #apply({ type, free_remaining_ms, paid, limit, elapsed_ms, receipt }) {
    if (receipt) this.receipt = receipt;
    if (!this.#base) return;
    if (type === 'free_time') this.#settle({ free_remaining_ms, paid });
    if (type === 'limit_reached') this.#halt('stopping', elapsed_ms, { limit, remaining_ms: 0 });
    if (type === 'stopped') this.#halt('ended', receipt?.elapsed_ms);
  }

  /** The time stands still where the server says that it stopped. */
  #halt(state, elapsed_ms, corrections) {
    this.#settle({ state, ...corrections });
    if (elapsed_ms !== undefined) this.#base.elapsed_ms = this.#told = elapsed_ms;
  }

  /** The counted time since the last figures; nothing while the clock stands still. */
  #run() {
    const { state, at, elapsed_ms, remaining_ms, speed } = this.#base;
    if (state !== 'active') return 0;
    const isStill = at === null || this.#holds > 0;
    const run = isStill ? 0 : Math.max(0, (this.#link.now() - at) * speed);
    // A clock that is ahead waits. It catches up with the newest tick of a line that stalled.
    return Math.min(
      Math.max(run, this.#shown - elapsed_ms),
      Math.max(0, remaining_ms ?? Infinity),
    );
  }

  #creditsShown() {
    if (!this.#glide) return this.#base.credits;
    const { from, at, ms } = this.#glide;
    return from + (this.#base.credits - from) * Math.min(1, (this.#link.now() - at) / ms);
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

  /** Makes today's estimate the figures to estimate from, with some of them corrected. */
  #settle(corrections) {
    if (!this.#base) return;
    const { credits } = this.#base; // what is shown of them is on its way there
    const at = this.#base.at === null ? null : this.#link.now();
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
      at: this.#link.now(),
    };
  }
}
