/**
 * The page at `/`: a session as its user sees it.
 *
 * The browser client does all the counting, and its custom elements show clock, credits, usage
 * and notices. This file draws what is around them, and asks what may be asked before a start.
 * It keeps in sessionStorage which session this tab shows, so
 * that a reload shows the same session again.
 */

import { Taximeter, TaximeterError } from '/client/taximeter.js';
import { use } from '/client/elements.js';
import { drawEstimate, listPast } from './before.js';
import { beginRide, drawInstrument, rest } from './instrument.js';
import { drawMinutes, fetchMinutes, hasMinutes, mergeMinutes } from './minutes.js';
import { renderReceipt } from './receipt.js';
import { byId, calm, clockFace, count, countdown, explain, make } from './words.js';
import { nameOfKind, put, sentence, words } from './words.js';

const STORAGE_KEY = 'taximeter';
const MINUTE_MS = 60_000;

// State of this tab

const FORGOTTEN = {
  sessionId: null,
  kind: null,
  lastSeq: null,
  minutes: [],
  alert: false, // whether a warning is shown
  reachedSeq: null, // the seq of the `limit_reached` whose grace runs
};
let saved = { ...FORGOTTEN, ...JSON.parse(sessionStorage.getItem(STORAGE_KEY) ?? '{}') };
let token = null;
let session = null;
let frame = 0; // the next drawing, as an animation frame
let pause = 0; // the next drawing, as a timer, where the user prefers reduced motion
let laid = 0; // receipts shown so far, to detect a late answer for an earlier one

function save(changes) {
  saved = { ...saved, ...changes };
  sessionStorage.setItem(STORAGE_KEY, JSON.stringify(saved));
}

// Views

const toast = (text, level) => byId('notices').toast(text, level);

/** Lets the elements show this session, or none. */
function follow(sessionId) {
  for (const element of document.querySelectorAll('[data-session]')) {
    if (sessionId) element.setAttribute('session', sessionId);
    else element.removeAttribute('session');
  }
}

/** Shows a view: `loading`, `token`, `start`, `ride` (both the meter), or `receipt`. */
function show(view) {
  const isMeter = ['start', 'ride'].includes(view);
  for (const section of document.querySelectorAll('.view')) {
    section.hidden = section.id !== `view-${isMeter ? 'meter' : view}`;
  }
  for (const panel of document.querySelectorAll('.panel')) {
    panel.hidden = panel.dataset.panel !== view;
  }
  if (document.body.dataset.view !== view) {
    document.body.dataset.view = view;
    const title = { start: 'start-title', ride: 'ride-title' }[view] ?? `${view}-title`;
    byId(title)?.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
  if (view !== 'ride') put(document.querySelector('title'), 'Taximeter');
  if (view === 'start') {
    rest();
    drawEstimate(meter, chosenKind());
    listPast(meter, showPast);
  }
  draw();
}

// Tokens and credits for a demonstration

async function post(path, body, headers = {}) {
  const response = await fetch(path, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', ...headers },
    body: JSON.stringify(body),
  }).catch((cause) => {
    const details = { retryable: true, cause };
    throw new TaximeterError('unavailable', 'The server does not answer.', details);
  });
  if (response.ok) return response.json();
  const isMissing = response.status === 404;
  throw new TaximeterError('unavailable', `${path}: ${response.status}`, { retryable: !isMissing });
}

async function freshToken() {
  if (saved.pasted) token = saved.pasted;
  else {
    const given = await post('/demo/token', { user_id: saved.userId });
    token = given.token;
    save({ userId: given.user_id });
  }
  return token;
}

function uniqueId() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

async function topUp(amount) {
  const headers = { Authorization: `Bearer ${token}`, 'Idempotency-Key': uniqueId() };
  await post('/demo/top-up', { amount }, headers);
}

function chosenKind() {
  const { value } = byId('start-form').elements.kind;
  return byId('fast').checked ? `${value}-demo` : value;
}

async function attempt(button, action) {
  button.disabled = true;
  try {
    await action();
  } catch (error) {
    const isTopUp = error.code === 'unavailable' && !error.retryable;
    toast(isTopUp ? words.noTopUp : explain(error), 'over');
  } finally {
    button.disabled = false;
  }
}

// The connection

const meter = new Taximeter({ token: freshToken });
use(meter);
meter.subscribe(() => {
  for (const element of document.querySelectorAll('[data-month]')) {
    element.hidden = !meter.getSnapshot().usage;
  }
});

meter.addEventListener('connection', ({ detail }) => {
  byId('connection').dataset.state = detail.state;
  put(byId('connection-text'), words.connections[detail.state]);
  showTrouble(detail);
  draw();
});

/** Whether another token would help: none, or a refused one. */
function asksForToken({ code, retryable }) {
  const isBare = meter.welcome === null && ['forbidden', 'unavailable'].includes(code);
  return !retryable && (code === 'unauthenticated' || isBare);
}

/** Shows why there is no connection, once several attempts have failed. */
function showTrouble({ state, error }) {
  const isOffline = state === 'offline';
  byId('trouble').hidden = !error || (isOffline && asksForToken(error));
  if (!error) return;
  const reason = sentence(error.message);
  const title = isOffline ? words.connectionEnded : words.cannotReach;
  const next = isOffline ? '' : ` ${words.keepsTrying}`;
  put(byId('trouble-text'), `${title} ${reason}${next}`);
  put(byId('try-again'), isOffline ? words.tryAgain : words.tryNow);
}

meter.addEventListener('welcome', ({ detail }) => {
  for (const element of document.querySelectorAll('[data-user]')) put(element, detail.user_id);
  if (['loading', 'token'].includes(document.body.dataset.view)) {
    if (!saved.sessionId) show('start');
    else if (!session) ride();
  }
  draw();
});

meter.addEventListener('credit', ({ detail }) => {
  if (detail.account_id !== meter.welcome.account_id) return;
  if (detail.reason === 'grant') toast(count(words.added, Number(detail.delta)));
  if (document.body.dataset.view === 'start') drawEstimate(meter, chosenKind());
});

meter.addEventListener('error', ({ detail: error }) => {
  if (error.retryable) return; // the lamp shows that the client tries again
  if (asksForToken(error)) {
    put(byId('token-error'), saved.pasted ? words.tokenRefused : '');
    save({ pasted: null });
    show('token');
  } else {
    toast(explain(error), 'over');
  }
});

// The session

function ride() {
  document.body.dataset.alert = saved.alert ? 'warning' : '';
  beginRide();
  follow(saved.sessionId);
  session = meter.start({
    kind: saved.kind,
    sessionId: saved.sessionId,
    lastSeq: saved.lastSeq ?? undefined,
  });
  const ridden = session;
  const on = (type, listener) =>
    ridden.addEventListener(type, ({ detail }) => {
      if (ridden !== session) return; // the user has left that session
      listener(detail);
      // After a reload within the grace, the server sends the stop again, with the end of the grace.
      const { state, lastSeq = null } = session ?? {};
      const isStopping = state === 'stopping' && saved.reachedSeq !== null;
      save({ lastSeq: isStopping ? saved.reachedSeq - 1 : lastSeq });
      draw();
    });
  ridden.addEventListener('tick', draw); // a hidden tab gets ticks, but no frames
  on('session', showSnapshot);
  on('minute', showMinute);
  on('limit_warning', () => alertTo(true));
  on('limit_cleared', () => alertTo(false));
  on('limit_reached', halt);
  on('stopped', (message) => finish(message.receipt, message.limit));
  on('error', failed);
  return session.ready;
}

function alertTo(alert) {
  save({ alert });
  document.body.dataset.alert = alert ? 'warning' : '';
}

/** Takes the reader to the panel of the stop, which the element of notices shows. */
function halt({ seq }) {
  // A missed `limit_reached` may be old: the snapshot says that the limit was lifted since.
  if (session.state !== 'stopping') return;
  alertTo(false);
  save({ reachedSeq: seq });
  byId('notices-region').focus(); // not the element: a tabindex would close it to the keyboard
}

function showSnapshot(snapshot) {
  put(byId('ride-title'), nameOfKind(snapshot.kind));
  byId('demonstration').hidden = (snapshot.speed ?? 1) === 1;
  const price = Number(snapshot.credits_per_minute);
  put(byId('price'), price ? count(words.price, price) : words.noPrice);
  const others = snapshot.limits.filter(({ limit }) => limit !== snapshot.limit);
  byId('limits').replaceChildren(
    ...others
      .filter(({ remaining_ms }) => remaining_ms !== null)
      .map(({ limit, remaining_ms }) =>
        make('li', {}, make('span', {}, words.limits[limit].name), countdown(remaining_ms)),
      ),
  );
  const here = new URLSearchParams({ session: snapshot.session_id, kind: snapshot.kind });
  if (saved.userId) here.set('user', saved.userId);
  byId('second-tab').href = `/#${here}`;
  byId('go-on').hidden = snapshot.limit !== 'credits';
  if (snapshot.state !== 'stopping') save({ reachedSeq: null });
  else alertTo(false);
  if (snapshot.state === 'ended') fetchReceipt();
  else {
    completeMinutes(Math.floor(snapshot.elapsed_ms / MINUTE_MS));
    if (document.body.dataset.view === 'ride') return;
    drawMinutes(saved.minutes);
    show('ride');
  }
}

/** Shows a session's error, in the form or in a toast. */
function failed(error) {
  if (error.code === 'session_ended') fetchReceipt();
  else if (document.body.dataset.view === 'start') {
    forget();
    put(byId('start-error'), explain(error));
  } else {
    toast(explain(error), 'over');
    forget();
    show('start');
  }
}

function forget() {
  session = null;
  follow(null);
  save(FORGOTTEN);
  document.body.dataset.alert = '';
}

function showMinute(row) {
  if (saved.minutes.some(({ minute }) => minute === row.minute)) return;
  const { minute, seconds, credits } = row;
  save({ minutes: mergeMinutes(saved.minutes, [{ minute, seconds, credits }]) });
  drawMinutes(saved.minutes, minute);
}

/** Reads the minutes that this tab has missed. */
async function completeMinutes(count) {
  const { sessionId, minutes } = saved;
  if (hasMinutes(minutes, count)) return;
  const recorded = await fetchMinutes(sessionId, token);
  if (saved.sessionId !== sessionId) return;
  save({ minutes: mergeMinutes(recorded, saved.minutes) });
  drawMinutes(saved.minutes);
}

async function fetchReceipt() {
  const { sessionId } = saved;
  const headers = { Authorization: `Bearer ${token}` };
  const path = `/v1/sessions/${encodeURIComponent(sessionId)}`;
  const response = await fetch(path, { headers }).catch(() => null);
  const receipt = response?.ok ? await response.json() : null;
  if (saved.sessionId !== sessionId) return; // `stopped` brought the receipt meanwhile
  if (receipt?.ended_at) finish(receipt, null);
  else failed(new TaximeterError('unknown_session', 'This session has ended.'));
}

function finish(receipt, limit) {
  const speed = session?.snapshot?.speed ?? 1;
  const { minutes } = saved;
  forget();
  lay(receipt, limit, minutes, speed);
}

/** Shows a session of the list. */
function showPast({ receipt, limit }) {
  lay(receipt, limit, [], 1);
}

/** Lays a receipt on the page, and adds the recorded minutes that are missing. */
function lay(receipt, limit, minutes, speed) {
  const version = (laid += 1);
  const draw = (rows) =>
    byId('receipt').replaceChildren(...renderReceipt(receipt, limit, rows, speed));
  draw(minutes);
  if (!hasMinutes(minutes, receipt.minutes)) {
    fetchMinutes(receipt.session_id, token).then((recorded) => {
      if (version === laid) draw(mergeMinutes(recorded, minutes));
    });
  }
  show('receipt');
}

// Drawing

function draw() {
  const reading = session?.now() ?? null;
  if (!reading || document.body.dataset.view !== 'ride') return;
  drawInstrument(reading, meter.state);
  put(document.querySelector('title'), `${clockFace(reading.elapsed_ms)} · Taximeter`);
  // Every caller of draw() replaces the planned drawing, so there is one loop only. Numbers of
  // frames and of timers overlap, so each kind has its own variable and is cancelled as such.
  cancelAnimationFrame(frame);
  clearTimeout(pause);
  if (calm.matches) pause = setTimeout(draw, 1000);
  else frame = requestAnimationFrame(draw);
}

// Buttons and forms

byId('start-form').addEventListener('submit', (event) => {
  event.preventDefault();
  put(byId('start-error'), '');
  save({ ...FORGOTTEN, kind: chosenKind() });
  save({ sessionId: `${saved.kind}-${uniqueId()}` });
  byId('start').disabled = true;
  ride()
    .catch(() => {}) // the session's `error` event shows it
    .finally(() => {
      byId('start').disabled = false;
    });
});
byId('start-form').addEventListener('change', () => {
  rest();
  drawEstimate(meter, chosenKind());
});
byId('token-form').addEventListener('submit', (event) => {
  event.preventDefault();
  save({ pasted: byId('token').value.trim() });
  meter.connect();
});
byId('pause').addEventListener('click', ({ target }) =>
  attempt(target, () => (session.state === 'active' ? session.pause() : session.resume())),
);
byId('stop').addEventListener('click', ({ target }) => attempt(target, () => session.stop()));
byId('end-now').addEventListener('click', ({ target }) => attempt(target, () => session.stop()));
byId('go-on').addEventListener('click', ({ target }) =>
  attempt(target, async () => {
    await topUp('5');
    await session.resume();
  }),
);
byId('try-again').addEventListener('click', () => meter.connect());
byId('again').addEventListener('click', () => show('start'));
byId('print').addEventListener('click', () => print());
document.addEventListener('click', ({ target }) => {
  const button = target.closest('[data-top-up]');
  if (button) attempt(button, () => topUp(button.dataset.topUp));
});

// A link from another tab names the session to show, and its user.
const shared = new URLSearchParams(location.hash.slice(1));
if (shared.has('session')) {
  const [sessionId, kind, userId] = ['session', 'kind', 'user'].map((name) => shared.get(name));
  save({ ...FORGOTTEN, sessionId, kind, userId: userId ?? undefined });
  history.replaceState(null, '', location.pathname);
}
meter.connect();
