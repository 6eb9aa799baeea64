/**
 * Taximeter in React 18.3 and 19: hooks on the stores of a meter and of its sessions.
 *
 *     <TaximeterProvider url="/v1/ws" token={fetchToken}>…</TaximeterProvider>
 *
 *     const { status, stop } = useSession({ kind: 'chat', id: 'chat-17' });
 *     <Clock session="chat-17" />
 *
 * A render does nothing but read. A session starts when the first component with its id is
 * mounted, and it is left when the last one is gone for a macrotask: strict mode, a hot reload
 * and Suspense mount a component twice, and none of that reaches the bill.
 */

import {
  createContext,
  createElement,
  memo,
  useCallback,
  useContext,
  useEffect,
  useInsertionEffect,
  useLayoutEffect,
  useMemo,
  useRef,
  useState,
  useSyncExternalStore,
} from 'react';
import { Taximeter, TaximeterError } from './taximeter.js';

const OFF = Object.freeze({ status: 'off' });
const NONE = Object.freeze([]);
const Context = createContext(null);

const itself = (value) => value;
const noop = () => {};
const useLayout = globalThis.document ? useLayoutEffect : useEffect; // 18.3 warns on a server

/** Keeps the newest value for callbacks. */
function useLatest(value) {
  const latest = useRef(value);
  useInsertionEffect(() => {
    latest.current = value;
  });
  return latest;
}

/**
 * Gives a meter to the components below.
 *
 * Either `meter`, or `url` and `token` for a meter that lives as long as the provider does. The
 * newest `token` counts, so an inline function is fine. A `token` of null logs out, and another
 * `user` (any text that names who is logged in) is another login: every session is left, and no
 * message of the old user is heard. `tabs` is that of taximeter/tabs: one connection for many tabs. `initial` has what
 * a server has rendered: `{ meter, sessions: { [id]: view } }`.
 */
export function TaximeterProvider({ meter: given, url, token, user, tabs, initial, children }) {
  const latest = useLatest(token);
  const login = given || token ? `@${user}` : null; // null: no user
  const make = () => {
    const current = () => (typeof latest.current === 'function' ? latest.current() : latest.current);
    const meter = new Taximeter({ url, token: login && current, tabs });
    return { url, current, meter, login };
  };
  const [last, setOwn] = useState(null);
  let own = last;
  if (!given && (!own || own.url !== url)) setOwn((own = make()));
  const meter = given ?? own.meter;
  useLayout(() => {
    if (given || own.login === login || meter.state === 'closed') return;
    own.login = login;
    meter.switchUser(login && own.current);
  });
  useEffect(() => {
    if (given) return undefined;
    clearTimeout(own.closing);
    if (meter.state === 'closed') setOwn(make()); // hidden for a while, and shown again
    return () => {
      own.closing = setTimeout(() => meter.close());
    };
  }, [given, meter]);
  const value = useMemo(() => ({ meter, login, initial }), [meter, login, initial]);
  return createElement(Context.Provider, { value }, children);
}

/** @internal What the provider gives, for the other entries. */
export function useTaximeter() {
  const value = useContext(Context);
  if (!value) throw new Error('This hook needs a <TaximeterProvider> above it.');
  return value;
}

/** The meter of the provider, for what no hook does. */
export function useMeter() {
  return useTaximeter().meter;
}

/**
 * What `select` makes of a store's view; a new render only if that differs.
 *
 * `select` may be an inline function. Objects and arrays that it makes are compared by their
 * fields.
 */
function useSelected(subscribe, read, readFirst, select) {
  const rendered = useRef(null);
  const [get, getFirst] = useMemo(() => {
    const choose = chooser(select, rendered);
    return [() => choose(read()), () => choose(readFirst())];
  }, [read, readFirst, select]);
  const value = useSyncExternalStore(subscribe, get, getFirst);
  useEffect(() => {
    rendered.current = { value };
  });
  return value;
}

function chooser(select, rendered) {
  let last = null;
  return (view) => {
    if (last?.view === view) return last.value;
    const value = select(view);
    const known = last ?? rendered.current;
    last = { view, value: known && isSame(known.value, value) ? known.value : value };
    return last.value;
  };
}

const isObject = (value) => typeof value === 'object' && value !== null;

function isSame(a, b) {
  if (Object.is(a, b)) return true;
  if (!isObject(a) || !isObject(b)) return false;
  const names = Object.keys(a);
  return (
    names.length === Object.keys(b).length && names.every((name) => Object.is(a[name], b[name]))
  );
}

/**
 * Starts a session, or joins it, while the component is mounted and `enabled`.
 *
 * Returns the session's view with `pause`, `resume`, `stop` and `retry`, or what `select` makes of
 * both. A session that cannot start is `failed`, with the `error`; `retry()` starts it again.
 * A view changes with every tick: select what you show, and use `<Clock>` for the time.
 * `metadata`, `counterpartId` and `tickMs` count when the session starts; later changes, and
 * new objects in each render, start nothing.
 */
export function useSession({ kind, id, enabled = true, initial, ...terms }, select = itself) {
  const { meter, initial: given } = useTaximeter();
  const latest = useLatest(terms);
  // The app may have changed the meter's user: then the session is another one.
  const user = useSyncExternalStore(meter.subscribe, () => meter._login, noop);
  const isOn = Boolean(enabled && id && meter._options.token);
  const subscribe = useCallback(
    (listener) => {
      if (meter.state === 'closed' || !isOn) return noop;
      const held = meter.find(id);
      // A component that shows a failure must not start the session again: it would never end.
      const session = held?._isHeld
        ? held.retain()
        : meter.retain({ kind, sessionId: id, ...latest.current });
      const unsubscribe = session.subscribe(listener);
      return () => {
        unsubscribe();
        session.release();
      };
    },
    [meter, isOn, kind, id, latest, user],
  );
  const first = initial ?? given?.sessions?.[id] ?? OFF;
  const [read, readFirst] = useMemo(() => {
    const retry = () => {
      if (!meter.find(id)?.getSnapshot().error) return;
      meter.retain({ kind, sessionId: id, ...latest.current }).release();
      meter.connect();
    };
    const actions = { ...actionsOf(meter, id), retry };
    const extend = chooser((view) => ({ ...view, ...actions }), { current: null });
    return [
      () => extend((isOn && meter.find(id)?.getSnapshot()) || OFF),
      () => extend(first),
    ];
  }, [meter, isOn, kind, id, first, latest]);
  return useSelected(subscribe, read, readFirst, select);
}

function actionsOf(meter, id) {
  const act = (name) => async () => {
    const session = meter.find(id);
    if (!session) throw new TaximeterError('closed', 'The session does not run here.');
    return session[name]();
  };
  return { pause: act('pause'), resume: act('resume'), stop: act('stop') };
}

/** The session of this id that the page has, or that its user had last; undefined before the first. */
function useFound(id) {
  const { meter } = useTaximeter();
  const read = useMemo(() => {
    let last;
    let era;
    return () => {
      if (era !== meter._era) last = undefined;
      era = meter._era;
      return (last = meter.find(id) ?? last);
    };
  }, [meter, id]);
  return useSyncExternalStore(meter.subscribe, read, noop);
}

/** What `select` makes of the meter's view: connection, user, credits, usage, error. */
function useMeterView(select) {
  const { meter, initial } = useTaximeter();
  const readFirst = useCallback(
    () => initial?.meter ?? meter.getServerSnapshot(),
    [meter, initial],
  );
  return useSelected(meter.subscribe, meter.getSnapshot, readFirst, select);
}

/** The month's usage as the server pushed it last, or null; or what `select` makes of it. */
export function useUsage(select = itself) {
  return useMeterView((view) => select(view.usage));
}

/**
 * The account's balance as a number, or null before it is known; or what `select` makes of it.
 *
 * `useCredits(Math.floor)` renders once for each whole credit.
 */
export function useCredits(select = itself) {
  return useMeterView(({ credits }) => (credits === null ? null : select(credits)));
}

/** `{ connection, error }`: whether figures are live, and if not, why. */
export function useConnection() {
  return useMeterView(({ connection, error }) => ({ connection, error }));
}

/**
 * The newest notices of a session, at most eight, the oldest first.
 *
 * `listener` gets each notice that comes while the component is mounted, once.
 */
export function useNotices(id, listener) {
  const session = useFound(id);
  const latest = useLatest(listener);
  const heard = useRef(null);
  const read = useCallback(() => session?.getSnapshot().notices ?? NONE, [session]);
  const subscribe = useCallback(
    (call) => {
      if (!session) return noop;
      const newest = () => read().at(-1)?.seq ?? -1;
      if (heard.current?.session !== session) heard.current = { session, seq: newest() };
      return session.subscribe(() => {
        for (const notice of read()) {
          if (notice.seq <= heard.current.seq) continue;
          heard.current.seq = notice.seq;
          latest.current?.(notice);
        }
        call();
      });
    },
    [session, read, latest],
  );
  return useSyncExternalStore(subscribe, read, () => NONE);
}

/** A duration as `0:07`, `12:30` or `1:02:03`. */
export function formatClock(elapsedMs) {
  const seconds = Math.floor(Math.max(0, elapsedMs) / 1000);
  const pad = (number) => String(number).padStart(2, '0');
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  const head = hours ? `${hours}:${pad(minutes)}` : minutes;
  return `${head}:${pad(seconds % 60)}`;
}

/**
 * The time of a session, as text that is written for each frame that changes it.
 *
 * React renders it once: the frames write the text themselves. `figure` may be `elapsed_ms`,
 * `remaining_ms` or `free_remaining_ms`, `format` makes the text. Other properties go to the
 * element.
 */
export const Clock = memo(function Clock({
  session: id,
  figure = 'elapsed_ms',
  format = formatClock,
  initial,
  ...rest
}) {
  const { initial: given } = useTaximeter();
  const session = useFound(id);
  const element = useRef(null);
  const latest = useLatest(format);
  const first = useState(() => (initial ?? given?.sessions?.[id])?.[figure] ?? 0)[0];
  const text = useState(() => format(first))[0];
  const shown = useRef();
  useEffect(() => {
    // What is written is another session's, or another user's.
    if (shown.current && shown.current !== session) element.current.textContent = latest.current(0);
    shown.current = session;
    if (!session) return undefined;
    let frame = null;
    const write = () => {
      frame = null;
      const view = session.getSnapshot();
      const value = (view.receipt ?? session.now() ?? {})[figure];
      const text = value === undefined || value === null ? '' : latest.current(value);
      if (text && element.current.textContent !== text) element.current.textContent = text;
      if (view.status === 'running' && view.live) frame = requestAnimationFrame(write);
    };
    const wake = () => {
      frame ??= requestAnimationFrame(write);
    };
    const unsubscribe = session.subscribe(wake);
    wake();
    return () => {
      unsubscribe();
      cancelAnimationFrame(frame);
    };
  }, [session, figure, latest]);
  return createElement('span', { role: 'timer', ...rest, ref: element }, text);
});
