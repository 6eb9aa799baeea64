/**
 * What an app asks beside a running session: how long may I talk, and what did it cost?
 *
 *     const { remaining_ms, free_remaining_ms } = await estimate(meter, { kind: 'chat' });
 *     const { items, next_cursor } = await listSessions(meter, { kind: 'chat' });
 *
 * Each call is one request, as the meter's user. They connect the meter and wait for it. When the
 * user changes meanwhile, they reject with the code `closed`: no answer reaches the next user.
 */

import { fetchAs } from './http.js';
import { TaximeterError } from './taximeter.js';

/**
 * Promises what `work` does for the present user.
 *
 * It rejects with the code `closed` at once when the user changes, logs out, or the meter is
 * closed. Then `signal`, the argument of `work`, is aborted: nothing is asked any more.
 */
function whileUser(meter, work) {
  const era = meter._era;
  const ending = new AbortController();
  return new Promise((resolve, reject) => {
    const look = () => {
      if (era === meter._era) return false;
      end();
      ending.abort();
      reject(new TaximeterError('closed', 'The user has changed.'));
      return true;
    };
    const end = meter.subscribe(look);
    const settle = (settler) => (value) => {
      end();
      if (!look()) settler(value);
    };
    work(ending.signal).then(settle(resolve), settle(reject));
  });
}

/** Promises what `pick` finds in the meter's view; connects for it. */
function find(meter, pick, signal) {
  return new Promise((resolve, reject) => {
    let end = () => {};
    const look = () => {
      const view = meter.getSnapshot();
      const found = !signal.aborted && pick(view);
      if (found) resolve(found);
      else if (!signal.aborted && !['offline', 'closed'].includes(view.connection)) return false;
      else reject(view.error ?? new TaximeterError('offline', 'There is no connection.'));
      end();
      return true;
    };
    meter.connect();
    if (!look()) end = meter.subscribe(look);
  });
}

/**
 * Promises what `pick` finds in the meter's view; connects for it.
 *
 * It rejects with the code `closed` when the user changes first.
 */
export function firstOf(meter, pick) {
  return whileUser(meter, (signal) => find(meter, pick, signal));
}

async function ask(meter, path, query, init) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined);
  let response;
  try {
    response = await fetchAs(meter, `${path}?${new URLSearchParams(given)}`, init);
  } catch (cause) {
    const details = { retryable: true, cause };
    throw new TaximeterError('unavailable', 'The server does not answer.', details);
  }
  const body = await response.json().catch(() => null); // a proxy may answer with a page
  if (response.ok && body) return body;
  const { status, statusText } = response;
  const details = { retryable: response.ok || status >= 500 || status === 429 };
  throw new TaximeterError(body?.code ?? 'unavailable', body?.detail ?? statusText, details);
}

/** Asks below `/v1/`, as the present user; `pathOf` makes the path for the user's account. */
export function askAs(meter, pathOf, query, init) {
  return whileUser(meter, async (signal) => {
    const account = await find(meter, (view) => view.account_id, signal);
    return ask(meter, pathOf(encodeURIComponent(account)), query, { ...init, signal });
  });
}

/**
 * What a session would show if it started now; nothing is reserved.
 *
 * `sessionId` is that of a session which a backend has prepared, with terms of its own.
 */
export async function estimate(meter, { kind, counterpartId, sessionId }) {
  const query = { kind, counterpart: counterpartId, session_id: sessionId };
  return askAs(meter, (account) => `accounts/${account}/estimate`, query);
}

/**
 * A page of the user's sessions, past and live, newest first, with their receipts.
 *
 * `from` and `to` are epoch milliseconds; `cursor` is the `next_cursor` of the page before.
 */
export async function listSessions(meter, { counterpartId, kind, from, to, cursor, limit } = {}) {
  const query = { counterpart: counterpartId, kind, from, to, cursor, limit };
  return askAs(meter, () => 'sessions', query);
}
