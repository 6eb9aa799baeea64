/**
 * What an app asks beside a running session: how long may I talk, and what did it cost?
 *
 *     const { remaining_ms, free_remaining_ms } = await estimate(meter, { kind: 'chat' });
 *     const { items, next_cursor } = await listSessions(meter, { kind: 'chat' });
 *
 * Each call is one request, as the meter's user. They connect the meter and wait for it.
 */

import { fetchAs } from './http.js';
import { TaximeterError } from './taximeter.js';

/** Promises what `pick` finds in the meter's view; connects for it. */
export function firstOf(meter, pick) {
  return new Promise((resolve, reject) => {
    let end = () => {};
    const look = () => {
      const view = meter.getSnapshot();
      const found = pick(view);
      if (found) resolve(found);
      else if (!['offline', 'closed'].includes(view.connection)) return false;
      else reject(view.error ?? new TaximeterError('offline', 'There is no connection.'));
      end();
      return true;
    };
    meter.connect();
    if (!look()) end = meter.subscribe(look);
  });
}

async function ask(meter, path, query) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined);
  let response;
  try {
    response = await fetchAs(meter, `${path}?${new URLSearchParams(given)}`);
  } catch (cause) {
    const details = { retryable: true, cause };
    throw new TaximeterError('unavailable', 'The server does not answer.', details);
  }
  const body = await response.json().catch(() => ({}));
  if (response.ok) return body;
  const details = { retryable: response.status >= 500 || response.status === 429 };
  throw new TaximeterError(body.code ?? 'unavailable', body.detail ?? response.statusText, details);
}

/**
 * What a session would show if it started now; nothing is reserved.
 *
 * `sessionId` is that of a session which a backend has prepared, with terms of its own.
 */
export async function estimate(meter, { kind, counterpartId, sessionId }) {
  const account = await firstOf(meter, (view) => view.account_id);
  const path = `accounts/${encodeURIComponent(account)}/estimate`;
  return ask(meter, path, { kind, counterpart: counterpartId, session_id: sessionId });
}

/**
 * A page of the user's sessions, past and live, newest first, with their receipts.
 *
 * `from` and `to` are epoch milliseconds; `cursor` is the `next_cursor` of the page before.
 */
export async function listSessions(meter, { counterpartId, kind, from, to, cursor, limit } = {}) {
  await firstOf(meter, (view) => view.account_id);
  return ask(meter, 'sessions', { counterpart: counterpartId, kind, from, to, cursor, limit });
}
