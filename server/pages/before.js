/**
 * What the page asks before a session starts: how long it may run, and what there was.
 */

import { estimate, listSessions } from '/client/records.js';
import { byId, clockFace, count, fill, make, nameOfKind, put, words } from './words.js';

/** Sessions that the list shows at once. */
const PAGE = 5;

let asked = 0; // estimates asked for, to detect a late answer for an earlier one
let known = new Map(); // the sessions of the list, by id

/** How long a session of this kind could run, in words. */
function describe({ can_start, free_remaining_ms, remaining_ms, limit, limits }) {
  if (!can_start) return fill(words.mayNotStart, words.limits[limit ?? limits[0].limit]);
  if (remaining_ms === null) return words.mayRunOn;
  const text = free_remaining_ms > 0 ? words.mayRunFree : words.mayRun;
  const [time, free] = [remaining_ms, free_remaining_ms].map(clockFace);
  return fill(text, { time, free, limit: words.limits[limit].soon });
}

/** Shows how long a session could run, as the server estimates it; nothing if it does not. */
export async function drawEstimate(meter, kind) {
  const version = (asked += 1);
  const found = await estimate(meter, { kind }).catch(() => null);
  if (version !== asked) return;
  byId('estimate').hidden = !found;
  put(byId('estimate-title'), kind.startsWith('chat') ? words.howLongTalk : words.howLongRecord);
  put(byId('estimate-text'), found ? describe(found) : '');
}

/** Shows the newest sessions that have ended; a click calls `open` with one. */
export async function listPast(meter, open, cursor) {
  if (cursor === undefined) known = new Map();
  const mine = known;
  const page = await listSessions(meter, { limit: PAGE, cursor }).catch(() => null);
  if (mine !== known || !page) return; // another list was begun meanwhile
  for (const item of page.items) if (item.receipt) known.set(item.session_id, item);
  byId('past').hidden = known.size === 0 && page.next_cursor === null;
  byId('past-list').replaceChildren(...[...known.values()].map((item) => row(item, open)));
  byId('past-more').hidden = page.next_cursor === null;
  byId('past-more').onclick = () => listPast(meter, open, page.next_cursor);
}

function row(item, open) {
  const { kind, receipt } = item;
  const at = new Date(receipt.started_at);
  const day = at.toLocaleString('en-GB', { dateStyle: 'medium', timeStyle: 'short' });
  const time = clockFace(receipt.elapsed_ms);
  const button = make(
    'button',
    { type: 'button', title: words.showReceipt },
    make('strong', {}, nameOfKind(kind)),
    make('span', { class: 'hint' }, fill(words.pastOne, { day, time })),
    make('span', { class: 'amount' }, count(words.amount, Number(receipt.credits))),
  );
  button.addEventListener('click', () => open(item));
  return make('li', {}, button);
}
