/**
 * A page's study of one call, as a store: for `useStreamStudyTimeTracker` of react-legacy.js.
 */

import { fetchAs } from './http.js';
import { askAs } from './records.js';

/** How soon a page asks again until its call is heard of. */
const ASK_MS = 3_000;
/** How often a page repeats itself where it alone says that its user is in a call. */
const REPEAT_MS = 600_000;

const PATH = '../api/study-sessions/stream-duration';
const NO_DAY = { date: null, seconds: 0, elapsedMs: 0 };

/**
 * The study of a call.
 *
 * It reads the day when the first component looks. When none has looked for a macrotask, it ends
 * what it has begun: a component may be mounted twice.
 */
export function createStudy(meter, callId) {
  const listeners = new Set();
  let view = { isTracking: false, dailyHours: 0, error: null };
  let day = NO_DAY; // with the session's time when it was read
  let isOpen = false;
  let isWanted = false;
  let isHeard = false;
  let isPaused = false;
  let session = null;
  let isNew = true; // the day was read before the session was known
  let isUnread = false;
  let unfollow = () => {};
  let timer;
  let era = meter._era; // of its user
  let token; // of that user, who may have gone when the study ends
  let last = Promise.resolve(); // what was said last
  let unwatch;

  const elapsedMs = () => {
    const { receipt, elapsed_ms = 0 } = session?.getSnapshot() ?? {};
    return receipt?.elapsed_ms ?? elapsed_ms;
  };
  const secondsNow = () =>
    day.seconds + (isNew ? 0 : Math.max(0, elapsedMs() - day.elapsedMs) / 1000);
  const show = (error) => {
    const next = {
      isTracking: isHeard && session?.getSnapshot().status !== 'ended',
      dailyHours: Math.round(secondsNow() / 36) / 100,
      error,
    };
    if (Object.keys(next).every((name) => next[name] === view[name])) return;
    view = next;
    for (const listener of listeners) listener();
  };

  /** Follows the session that counts the time; null: none any more. */
  const follow = (sessionId) => {
    if (sessionId === (session?.sessionId ?? null)) return;
    day = { ...day, seconds: secondsNow(), elapsedMs: 0 };
    unfollow();
    const known = sessionId && meter.find(sessionId);
    const followed = sessionId ? (known ?? meter.watch(sessionId)) : null;
    session = followed;
    isNew = isUnread = true;
    const unsubscribe = followed?.subscribe(look);
    unfollow = () => {
      unsubscribe?.();
      if (!known) followed?.leave();
    };
    if (followed) look();
  };

  /** Shows the session's time; the day has had a part of it before the page followed it. */
  const look = () => {
    if (isUnread && elapsedMs()) {
      isUnread = false;
      readDay();
    }
    show(view.error);
  };

  const stop = () => {
    clearTimeout(timer);
    isWanted = isHeard = isPaused = false;
  };

  /** Forgets the last user. */
  const checkUser = () => {
    if (era === meter._era) {
      token = meter._lastToken ?? token;
      return;
    }
    if (isWanted) endNow();
    era = meter._era;
    token = null;
    stop();
    follow(null);
    day = NO_DAY;
    show(null);
    readDay();
  };

  const isLoggedIn = () => meter._options.token && meter.state !== 'closed';
  const saying = (action) => ({
    method: 'POST',
    body: JSON.stringify({ callId, action }),
    keepalive: true, // the page may be leaving
  });
  /** Says it after what was said before: an end must not overtake its start. */
  const post = (action) => {
    const said = last.then(() => askAs(meter, () => PATH, {}, saying(action)));
    last = said.catch(() => {});
    return said;
  };
  /** Ends the study of a user who goes, or of a page that goes. */
  const endNow = () => {
    if (token) fetchAs(meter, PATH, saying('end'), token).catch(() => {});
  };
  /** Shows an error, unless it says that the user has gone. */
  const fail = (error) => {
    if (error.code !== 'closed') show(error);
  };

  const readDay = async () => {
    if (!isLoggedIn()) return;
    try {
      const { date, seconds } = await askAs(meter, () => '../api/study-sessions/daily-hours', {});
      // What has just been counted may not be recorded yet.
      const counted = date === day.date ? secondsNow() : 0;
      day = { date, seconds: Math.max(seconds, counted), elapsedMs: elapsedMs() };
      isNew = !day.elapsedMs;
      show(view.error);
    } catch (error) {
      fail(error);
    }
  };

  /** Says that the user is in the call, and again until it is heard of. */
  const say = async () => {
    if (!isWanted) return;
    let waitMs = ASK_MS;
    try {
      const { sessionId, clock } = await post('start');
      if (!isWanted) return;
      isHeard = true;
      follow(sessionId);
      show(null);
      if (sessionId) waitMs = clock === 'page' ? REPEAT_MS : 0;
    } catch (error) {
      fail(error);
      if (!error.retryable) isWanted = false;
    }
    clearTimeout(timer); // of another attempt at the same time
    if (isWanted && waitMs) timer = setTimeout(say, waitMs);
  };

  const startTracking = async () => {
    if (isWanted || !callId || !isLoggedIn()) return;
    isWanted = true;
    await say();
  };

  const endTracking = async () => {
    if (!isWanted) return null;
    stop();
    show(null);
    let ended = null;
    try {
      ended = await post('end');
    } catch (error) {
      if (error.code === 'closed') endNow();
      else if (error.code !== 'unknown_call') show(error); // the provider has said nothing at all
    }
    if (!isWanted) follow(null);
    await readDay();
    return ended;
  };

  // A page that is left ends its study, and one that the browser has kept goes on with it.
  const hide = () => {
    if (!isWanted) return;
    stop();
    isPaused = true;
    endNow(); // the meter must not connect now
  };
  const comeBack = () => {
    if (isPaused) startTracking();
    isPaused = false;
  };
  const listen = (change) => {
    globalThis[change]?.('pagehide', hide);
    globalThis[change]?.('pageshow', comeBack);
  };

  const subscribe = (listener) => {
    if (!isOpen) {
      isOpen = true;
      listen('addEventListener');
      unwatch = meter.subscribe(checkUser);
      checkUser();
      readDay();
    }
    listeners.add(listener);
    return () => {
      listeners.delete(listener);
      setTimeout(() => {
        if (listeners.size || !isOpen) return;
        isOpen = false;
        listen('removeEventListener');
        unwatch();
        endTracking();
      });
    };
  };

  return { subscribe, getSnapshot: () => view, startTracking, endTracking };
}
