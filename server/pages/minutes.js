/**
 * The list of a session's minutes.
 *
 * Rows come from the server's `minute` messages, and for earlier minutes from the record.
 */

import { byId, make } from './words.js';

const ROWS_MOST = 120;

/** Merges rows: each minute once, the newest first. */
export function mergeMinutes(rows, more) {
  const byMinute = new Map([...rows, ...more].map((row) => [row.minute, row]));
  return [...byMinute.values()].sort((a, b) => b.minute - a.minute).slice(0, ROWS_MOST);
}

/** Whether rows contain the newest of `count` minutes that the list shows. */
export function hasMinutes(rows, count) {
  const known = rows.filter(({ minute }) => minute < count);
  return known.length >= Math.min(count, ROWS_MOST);
}

/** Reads the recorded minutes; none if the server does not answer. */
export async function fetchMinutes(sessionId, token) {
  const headers = { Authorization: `Bearer ${token}` };
  const path = `/v1/sessions/${encodeURIComponent(sessionId)}/minutes`;
  const response = await fetch(path, { headers }).catch(() => null);
  return response?.ok ? (await response.json()).minutes : [];
}

/** Draws the list; the row of the minute `newest` is animated. */
export function drawMinutes(minutes, newest) {
  const rows = minutes.map(({ minute, seconds, credits }) => {
    const cells = [minute + 1, seconds, Number(credits).toFixed(4)];
    const attributes = { class: minute === newest ? 'new' : undefined };
    return make('tr', attributes, ...cells.map((cell) => make('td', {}, String(cell))));
  });
  const first = minutes.at(-1)?.minute ?? 0;
  if (first > 0) {
    const text = first === 1 ? 'Minute 1' : `Minutes 1 to ${first}`;
    rows.push(make('tr', {}, make('td', { colspan: 3 }, `${text}: on the record before this`)));
  }
  byId('minutes').replaceChildren(...rows);
  byId('tape-empty').hidden = rows.length > 0;
}
