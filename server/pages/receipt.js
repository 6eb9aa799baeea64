/**
 * The receipt, laid out as on paper.
 */

import { LIMITS, REASONS, clockFace, make, nameOfKind, timeOfDay } from './words.js';

/**
 * What the time was spent on, in order. What is neither counted nor a gap was a pause, or the
 * grace after a limit. What was not counted and took less than a second is not worth a line.
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

/** One stretch of time, and under it what it was, unless it was simply counted. */
const stretch = (one) => [
  ...line(span(one), spent(one), one.name && 'quiet'),
  ...(one.name ? line(`  ${one.name}`, '', 'quiet') : []),
];

/**
 * The parts of the paper: of the protocol's `receipt`, the `limit` that ended the session if
 * one did, the rows of the ledger that this page has seen, newest first, and the speed of a
 * demonstration.
 */
export function renderReceipt(receipt, limit, ledger, speed) {
  // A bill is exact to the last digit that it has, and its column is as wide as the longest.
  const amounts = [receipt.credits, ...ledger.map(({ credits }) => credits)];
  const places = Math.max(2, ...amounts.map((amount) => amount.split('.')[1]?.length ?? 0));
  const exactly = (amount) => Number(amount).toFixed(places);
  const minutes = [...ledger].reverse().flatMap(({ minute, seconds, credits }) =>
    line(`Minute ${minute + 1}, ${seconds} s`, exactly(credits)),
  );
  const day = new Date(receipt.started_at).toLocaleDateString('en-GB', { dateStyle: 'long' });
  const reason = limit ? LIMITS[limit].stopped : (REASONS[receipt.reason] ?? 'at its limit');
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
