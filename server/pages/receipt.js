/**
 * Renders a receipt as on paper.
 */

import { clockFace, make, nameOfKind, timeOfDay, words } from './words.js';

/**
 * The stretches of time of a session, in order.
 *
 * Time that is neither a segment nor a gap was a pause, or the grace after a limit. Stretches
 * of less than a second that were not counted are left out.
 */
function stretchesOf({ segments, gaps }) {
  const known = [
    ...segments.map((segment) => ({ ...segment, name: '' })),
    ...gaps.map((gap) => ({ ...gap, name: gap.billed ? 'gap, billed' : 'gap, not billed' })),
  ].sort((a, b) => a.from_at - b.from_at);
  const stretches = known.flatMap((one, index) => {
    const from_at = known[index - 1]?.to_at ?? one.from_at;
    const rest = { from_at, to_at: one.from_at, name: 'not counted' };
    return one.from_at > from_at ? [rest, one] : [one];
  });
  const isCounted = ({ name }) => name === '' || name === 'gap, billed';
  return stretches.filter((one) => isCounted(one) || one.to_at - one.from_at >= 1_000);
}

const line = (name, value, style) => [
  make('dt', { class: style }, name),
  make('dd', { class: style }, value),
];
const spent = ({ from_at, to_at }) => clockFace(to_at - from_at);
const span = ({ from_at, to_at }) => `${timeOfDay(from_at)} – ${timeOfDay(to_at)}`;

/** The lines of one stretch: its time, and its name if any. */
const stretch = (one) => [
  ...line(span(one), spent(one), one.name && 'quiet'),
  ...(one.name ? line(`  ${one.name}`, '', 'quiet') : []),
];

/**
 * The elements of a receipt.
 *
 * `receipt` is the protocol's one. `limit` is the limit that ended the session, if one did.
 * `ledger` has the minutes that this page knows, newest first. `speed` is above 1 in a
 * demonstration.
 */
export function renderReceipt(receipt, limit, ledger, speed) {
  // Every amount has as many decimals as the longest one, so the bill is exact and aligned.
  const amounts = [receipt.credits, ...ledger.map(({ credits }) => credits)];
  const places = Math.max(2, ...amounts.map((amount) => amount.split('.')[1]?.length ?? 0));
  const exactly = (amount) => Number(amount).toFixed(places);
  const minutes = [...ledger].reverse().flatMap(({ minute, seconds, credits }) =>
    line(`Minute ${minute + 1}, ${seconds} s`, exactly(credits)),
  );
  const day = new Date(receipt.started_at).toLocaleDateString('en-GB', { dateStyle: 'long' });
  const reason = limit
    ? words.limits[limit].why
    : (words.reasons[receipt.reason] ?? words.reasons.limit);
  const title = `${nameOfKind(receipt.kind)}, ${reason}`;
  const note = `Demonstration: the meter ran ${speed} times as fast.`;
  return [
    make('header', {}, make('strong', {}, 'TAXIMETER'), day, make('br'), title),
    make('dl', {}, ...stretchesOf(receipt).flatMap(stretch)),
    make(
      'dl',
      {},
      ...line('Time counted', clockFace(receipt.elapsed_ms)),
      ...line('Free time', `− ${clockFace(receipt.free_ms)}`),
      ...line('Billed', clockFace(receipt.billed_ms)),
      ...line('Minutes on the record', String(receipt.minutes)),
    ),
    ...(minutes.length ? [make('dl', {}, ...minutes)] : []),
    make('dl', { class: 'total' }, ...line('Credits', exactly(receipt.credits))),
    make('footer', {}, ...(speed > 1 ? [note, make('br')] : []), receipt.session_id),
  ];
}
