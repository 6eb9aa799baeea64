/**
 * Draws a reading of the meter on the instrument's face.
 */

import { byId, clockFace, countdown, fill, nameOfKind, put, timeOfDay, words } from './words.js';

const MINUTE_MS = 60_000;
/** The shown time of a limit ignores smaller moves than this. */
const FLICKER_MS = 1_500;

let bindsAt = 0;
let longest = {}; // by limit: the most that was left of it, which is the full bar

/** Clears what belongs to an earlier session. */
export function beginRide() {
  longest = {};
  bindsAt = 0;
}

/** Draws the instrument before a session: the chosen kind, and `For hire`. */
export function rest() {
  byId('instrument').dataset.phase = 'rest';
  byId('controls').hidden = true;
  byId('demonstration').hidden = !byId('fast').checked;
  put(byId('ride-title'), nameOfKind(byId('start-form').elements.kind.value));
  put(byId('phase'), 'For hire');
  put(byId('dial-note'), '');
}

/** The colour, the flag's word, and the note under the time. */
function phaseOf(reading, connection) {
  if (connection !== 'live') return ['still', words.connections[connection], 'As last known'];
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

/** Draws the limit that binds first, and the time of day. */
function drawLimit({ limit, remaining_ms, speed, state }, connection) {
  const isKnown = limit !== null && remaining_ms !== null;
  const isOver = state === 'stopping' && limit !== null;
  const { soon, why } = words.limits[limit] ?? { soon: words.noLimit };
  put(byId('limit-name'), isOver ? fill(words.stopped, { why }) : soon);
  byId('limit-bar').parentElement.hidden = !isKnown || isOver;
  if (!isKnown || isOver) return put(byId('limit-when'), '');
  longest[limit] = Math.max(longest[limit] ?? 0, remaining_ms);
  byId('limit-bar').style.setProperty('--part', remaining_ms / (longest[limit] || 1));
  const projectedAt = Date.now() + remaining_ms / speed;
  if (Math.abs(projectedAt - bindsAt) > FLICKER_MS) bindsAt = projectedAt;
  const isRunning = state === 'active' && connection === 'live';
  const left = countdown(remaining_ms);
  const time = timeOfDay(bindsAt);
  const when = isRunning ? words.limitAt : words.limitAfter;
  return put(byId('limit-when'), fill(when, { time, left }));
}

/** Draws the face from a reading and the connection's state. */
export function drawInstrument(reading, connection) {
  const [phase, name, note] = phaseOf(reading, connection);
  byId('instrument').dataset.phase = phase;
  put(byId('phase'), name);
  put(byId('dial-note'), note);
  const { elapsed_ms, free_remaining_ms } = reading;
  byId('clock').classList.toggle('long', clockFace(elapsed_ms).length > 5);
  const ofFree = free_remaining_ms / (free_remaining_ms + elapsed_ms);
  const ofMinute = (elapsed_ms % MINUTE_MS) / MINUTE_MS;
  byId('arc').style.setProperty('--part', free_remaining_ms > 0 ? ofFree : ofMinute);
  put(byId('pause'), reading.state === 'active' ? 'Pause' : 'Go on');
  byId('controls').hidden = reading.state === 'stopping'; // then the halt panel has buttons
  drawLimit(reading, connection);
}
