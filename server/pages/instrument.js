/**
 * The instrument's face: what a reading of the meter looks like.
 */

import { CONNECTIONS, LIMITS, byId, calm } from './words.js';
import { clockFace, countdown, nameOfKind, put, timeOfDay } from './words.js';

const MINUTE_MS = 60_000;
/** A clock time that moves by less than this has not moved. */
const FLICKER_MS = 1_500;

let bindsAt = 0;
let longest = {}; // by limit: the most that was ever left of it, for its bar

/** What was known of an earlier ride is forgotten. */
export function beginRide() {
  longest = {};
  bindsAt = 0;
}

/** The instrument before a ride: it shows what is chosen, and that it is free. */
export function rest() {
  byId('instrument').dataset.phase = 'rest';
  byId('controls').hidden = true;
  byId('demonstration').hidden = !byId('fast').checked;
  put(byId('ride-title'), nameOfKind(byId('start-form').elements.kind.value));
  put(byId('phase'), 'For hire');
  put(byId('time'), '0:00');
  put(byId('tenths'), calm.matches ? '' : '.0');
  put(byId('dial-note'), '');
}

/** The light that shows, the word on the flag, and the line under the time. */
function phaseOf(reading, connection) {
  if (connection !== 'live') return ['still', CONNECTIONS[connection], 'As last known'];
  if (reading.state === 'paused') return ['still', 'Paused', 'Nothing is counted'];
  if (reading.state === 'suspended') return ['still', 'Waiting for your connection', ''];
  if (reading.state === 'stopping') return ['halted', 'Stopped', 'No further charge'];
  if (reading.state === 'ended') return ['ended', 'Ended', ''];
  const minute = `Minute ${Math.floor(reading.elapsed_ms / MINUTE_MS) + 1}`;
  if (reading.free_remaining_ms > 0) {
    return ['free', 'Free time', `Free time left ${countdown(reading.free_remaining_ms)}`];
  }
  return reading.paid ? ['paid', 'Using paid credits', minute] : ['plain', 'Counting', minute];
}

/** The balance, wherever it stands, with the digits below a hundredth in small. */
export function drawBalance(credits) {
  if (credits === null) return;
  const figures = credits.toFixed(4);
  for (const element of document.querySelectorAll('[data-balance]')) {
    put(element.querySelector('[data-whole]'), figures.slice(0, -2));
    put(element.querySelector('[data-part]'), figures.slice(-2));
  }
}

/** Which limit binds, and when by the clock on the wall. */
function drawLimit({ limit, remaining_ms, speed, state }, connection) {
  const isKnown = limit !== null && remaining_ms !== null;
  const isOver = state === 'stopping' && limit !== null;
  const name = isOver ? `Stopped: ${LIMITS[limit].stopped}` : LIMITS[limit]?.soon;
  put(byId('limit-name'), name ?? 'No limit in sight');
  byId('limit-bar').parentElement.hidden = !isKnown || isOver;
  if (!isKnown || isOver) return put(byId('limit-when'), '');
  longest[limit] = Math.max(longest[limit] ?? 0, remaining_ms);
  byId('limit-bar').style.setProperty('--part', remaining_ms / (longest[limit] || 1));
  const projectedAt = Date.now() + remaining_ms / speed;
  if (Math.abs(projectedAt - bindsAt) > FLICKER_MS) bindsAt = projectedAt;
  const isRunning = state === 'active' && connection === 'live';
  const left = countdown(remaining_ms);
  const when = isRunning ? `at ${timeOfDay(bindsAt)}, in ${left}` : `after ${left} more`;
  return put(byId('limit-when'), when);
}

/** The whole face, of a reading while the connection is in this state. */
export function drawInstrument(reading, connection) {
  const [phase, name, note] = phaseOf(reading, connection);
  byId('instrument').dataset.phase = phase;
  put(byId('phase'), name);
  put(byId('dial-note'), note);
  const { elapsed_ms, free_remaining_ms } = reading;
  const time = clockFace(elapsed_ms);
  put(byId('time'), time);
  put(byId('tenths'), calm.matches ? '' : `.${Math.floor(elapsed_ms / 100) % 10}`);
  byId('time').parentElement.classList.toggle('long', time.length > 5);
  const ofFree = free_remaining_ms / (free_remaining_ms + elapsed_ms);
  const ofMinute = (elapsed_ms % MINUTE_MS) / MINUTE_MS;
  byId('arc').style.setProperty('--part', free_remaining_ms > 0 ? ofFree : ofMinute);
  put(byId('pause'), reading.state === 'active' ? 'Pause' : 'Go on');
  byId('controls').hidden = reading.state === 'stopping'; // what can be done is said above
  drawLimit(reading, connection);
}
