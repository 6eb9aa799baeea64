/**
 * The page at `/`: a session as its user sees it.
 *
 * The browser client does all the counting. This file only draws the figures of
 * `session.now()` and of events. It keeps in sessionStorage which session this tab shows, so
 * that a reload shows the same session again.
 */

import { Taximeter, TaximeterError } from '/client/taximeter.js';
import { beginRide, drawBalance, drawInstrument, rest } from './instrument.js';
import { drawMinutes, fetchMinutes, hasMinutes, mergeMinutes } from './minutes.js';
import { renderReceipt } from './receipt.js';
import { CONNECTIONS, LIMITS, byId, calm, clockFace, countdown } from './words.js';
import { explain, make, nameOfKind, put, sentence, timeOfDay } from './words.js';

const STORAGE_KEY = 'taximeter';
const TOAST_MS = 9_000;
const MINUTE_MS = 60_000;

// State of this tab

const FORGOTTEN = {
  sessionId: null,
  kind: null,
  lastSeq: null,
  minutes: [],
  alert: false, // whether a warning is shown
  reached: null, // the `limit_reached` whose grace runs
};
let saved = { ...FORGOTTEN, ...JSON.parse(sessionStorage.getItem(STORAGE_KEY) ?? '{}') };
let token = null;
let session = null;
let balance = null;
let grace = null; // { endsAt, ms } by the browser's clock, while a limit's grace runs
let serverAheadMs = 0;
let frame = 0; // the next drawing, as an animation frame
let pause = 0; // the next drawing, as a timer, where the user prefers reduced motion
let laid = 0; // receipts shown so far, to detect a late answer for an earlier one

function save(changes) {
  saved = { ...saved, ...changes };
  sessionStorage.setItem(STORAGE_KEY, JSON.stringify(saved));
}

// Views and toasts

function toast(text, tone) {
  const close = make('button', { type: 'button', 'aria-label': 'Dismiss' }, '✕');
  const element = make('div', { class: 'toast', 'data-tone': tone }, make('span', {}, text), close);
  close.addEventListener('click', () => element.remove());
  byId('toasts').append(element);
  setTimeout(() => element.remove(), TOAST_MS);
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
  if (view === 'start') rest();
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
  const { credits } = await post('/demo/top-up', { amount }, headers);
  balance = Number(credits);
  draw();
}

async function attempt(button, action) {
  button.disabled = true;
  try {
    await action();
  } catch (error) {
    const isTopUp = error.code === 'unavailable' && !error.retryable;
    toast(isTopUp ? 'Topping up is part of the demonstration only.' : explain(error), 'stop');
  } finally {
    button.disabled = false;
  }
}

// The connection

const meter = new Taximeter({ token: freshToken });

meter.addEventListener('connection', ({ detail }) => {
  byId('connection').dataset.state = detail.state;
  put(byId('connection-text'), CONNECTIONS[detail.state]);
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
  const title = isOffline ? 'The connection has ended.' : 'This page cannot reach the meter.';
  const next = isOffline ? '' : ' It keeps trying.';
  put(byId('trouble-text'), `${title} ${reason}${next}`);
  put(byId('try-again'), isOffline ? 'Try again' : 'Try now');
}

meter.addEventListener('welcome', ({ detail }) => {
  balance = Number(detail.credits);
  serverAheadMs = detail.server_time_at - Date.now();
  for (const element of document.querySelectorAll('[data-user]')) put(element, detail.user_id);
  if (['loading', 'token'].includes(document.body.dataset.view)) {
    if (!saved.sessionId) show('start');
    else if (!session) ride();
  }
  draw();
});

meter.addEventListener('credit', ({ detail }) => {
  if (detail.account_id !== meter.welcome.account_id) return;
  balance = Number(detail.credits);
  const added = Number(detail.delta);
  const verb = added === 1 ? 'credit was' : 'credits were';
  if (detail.reason === 'grant') toast(`${added} ${verb} added.`);
  draw();
});

meter.addEventListener('error', ({ detail: error }) => {
  if (error.retryable) return; // the lamp shows that the client tries again
  if (asksForToken(error)) {
    put(byId('token-error'), saved.pasted ? 'That token was refused.' : '');
    save({ pasted: null });
    show('token');
  } else {
    toast(explain(error), 'stop');
  }
});

// The session

function ride() {
  document.body.dataset.alert = saved.alert ? 'warning' : '';
  beginRide();
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
      save({ lastSeq: session?.lastSeq ?? null });
      draw();
    });
  ridden.addEventListener('tick', draw); // a hidden tab gets ticks, but no frames
  on('session', showSnapshot);
  on('minute', showMinute);
  on('free_time', () => toast('Your free time is over. Credits are used from now on.', 'warning'));
  on('limit_warning', ({ limit, remaining_ms }) => {
    save({ alert: true });
    document.body.dataset.alert = 'warning';
    toast(`${LIMITS[limit].soon} in ${countdown(remaining_ms)}.`, 'warning');
  });
  on('limit_cleared', ({ limit }) => {
    save({ alert: false });
    document.body.dataset.alert = '';
    toast(`${LIMITS[limit].left}: there is enough again.`);
  });
  on('limit_reached', halt);
  on('stopped', (message) => finish(message.receipt, message.limit));
  on('error', failed);
  return session.ready;
}

function showSnapshot(snapshot) {
  serverAheadMs = snapshot.server_time_at - Date.now();
  put(byId('ride-title'), nameOfKind(snapshot.kind));
  byId('demonstration').hidden = (snapshot.speed ?? 1) === 1;
  const price = Number(snapshot.credits_per_minute);
  const unit = price === 1 ? 'credit' : 'credits';
  put(byId('price'), price ? `${price} ${unit} a minute` : 'This costs no credits.');
  const others = snapshot.limits.filter(({ limit }) => limit !== snapshot.limit);
  byId('limits').replaceChildren(
    ...others
      .filter(({ remaining_ms }) => remaining_ms !== null)
      .map(({ limit, remaining_ms }) =>
        make('li', {}, make('span', {}, LIMITS[limit].left), countdown(remaining_ms)),
      ),
  );
  const here = new URLSearchParams({ session: snapshot.session_id, kind: snapshot.kind });
  if (saved.userId) here.set('user', saved.userId);
  byId('second-tab').href = `/#${here}`;
  if (snapshot.state !== 'stopping') unhalt();
  else if (!grace) halt(saved.reached ?? { limit: snapshot.limit ?? 'credits' });
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
    toast(explain(error), 'stop');
    forget();
    show('start');
  }
}

function forget() {
  session = null;
  unhalt();
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

function halt({ limit, stopped_at, grace_ms }) {
  // A missed `limit_reached` may be old: the snapshot says that the limit was lifted since.
  if (session.state !== 'stopping') return;
  const isTold = stopped_at !== undefined; // unknown to a tab that opened late
  if (isTold) grace = { endsAt: stopped_at + grace_ms - serverAheadMs, ms: grace_ms };
  byId('toasts').replaceChildren(); // warnings of this limit are out of date
  save({ alert: false, reached: isTold ? { limit, stopped_at, grace_ms } : null });
  document.body.dataset.alert = '';
  put(byId('halt-title'), `Stopped: ${LIMITS[limit].stopped}`);
  const ending = limit === 'credits' ? 'Top up to go on where you were.' : 'Save your work now.';
  const at = isTold ? ` at ${timeOfDay(stopped_at - serverAheadMs)}` : '';
  put(byId('halt-text'), `The meter stopped${at}, and nothing more is charged. ${ending}`);
  byId('halt-clock').hidden = !isTold;
  byId('go-on').hidden = limit !== 'credits';
  byId('halt').hidden = false;
  byId('halt-title').focus();
}

function unhalt() {
  grace = null;
  save({ reached: null });
  byId('halt').hidden = true;
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
  const { minutes } = saved;
  const speed = session?.snapshot?.speed ?? 1;
  const lay = (rows) =>
    byId('receipt').replaceChildren(...renderReceipt(receipt, limit, rows, speed));
  const version = (laid += 1);
  lay(minutes);
  if (!hasMinutes(minutes, receipt.minutes)) {
    fetchMinutes(receipt.session_id, token).then((recorded) => {
      if (version === laid) lay(mergeMinutes(recorded, minutes));
    });
  }
  byId('toasts').replaceChildren();
  balance = session?.now()?.credits ?? balance;
  forget();
  show('receipt');
}

// Drawing

function drawGrace() {
  if (!grace) return;
  const leftMs = Math.max(0, grace.endsAt - Date.now());
  put(byId('halt-seconds'), String(Math.ceil(leftMs / 1000)));
  byId('halt-bar').style.setProperty('--part', Math.min(1, leftMs / grace.ms));
}

function draw() {
  const reading = session?.now() ?? null;
  drawBalance(reading?.credits ?? balance);
  if (!reading || document.body.dataset.view !== 'ride') return;
  drawInstrument(reading, meter.state);
  drawGrace();
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
  const { kind } = Object.fromEntries(new FormData(event.target));
  put(byId('start-error'), '');
  save({ ...FORGOTTEN, kind: byId('fast').checked ? `${kind}-demo` : kind });
  save({ sessionId: `${saved.kind}-${uniqueId()}` });
  byId('start').disabled = true;
  ride()
    .catch(() => {}) // the session's `error` event shows it
    .finally(() => {
      byId('start').disabled = false;
    });
});
byId('start-form').addEventListener('change', rest);
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
