/**
 * Types of the browser client, taximeter.js.
 *
 * Fields have the names and units of the wire: `_ms` is integer milliseconds, `_at` epoch
 * milliseconds, credits are decimal strings with at most six decimals.
 */

import type { StreamSocket } from './fallback.js';

/** A decimal number of credits, such as `"12.5"`. */
export type Credits = string;

export type Limit =
  | 'credits'
  | 'member_minutes'
  | 'org_minutes'
  | 'member_day_minutes'
  | 'org_day_minutes'
  | 'session_cap';
export type State = 'active' | 'paused' | 'suspended' | 'stopping' | 'ended';
export type StopReason =
  | 'client'
  | 'limit'
  | 'operator'
  | 'disconnected'
  | 'call_ended'
  | 'node_lost'
  | 'unavailable';
export type ConnectionState =
  | 'idle'
  | 'connecting'
  | 'live'
  | 'reconnecting'
  | 'offline'
  | 'closed';

/** The protocol's codes, and (from `timeout` on) the client's own. */
export type ErrorCode =
  | 'bad_message'
  | 'unauthenticated'
  | 'forbidden'
  | 'unknown_kind'
  | 'unknown_session'
  | 'session_ended'
  | 'limit_reached'
  | 'rate_limited'
  | 'unavailable'
  /** No answer came in time. */
  | 'timeout'
  /** Three attempts in a row had no `welcome`. The attempts go on. */
  | 'unreachable'
  /** The connection was lost. `retryable` says whether the client reconnects. */
  | 'disconnected'
  /** There is no connection, and the client makes none. */
  | 'offline'
  /** `close()` was called, or the session was left. */
  | 'closed';

export interface Welcome {
  type: 'welcome';
  user_id: string;
  org_id: string | null;
  account_id: string;
  credits: Credits;
  node: string;
  server_time_at: number;
  ping_ms: number;
  /** Null if the credential does not expire. */
  expires_at: number | null;
}

export interface SessionSnapshot {
  type: 'session';
  session_id: string;
  kind: string;
  state: State;
  seq: number;
  started_at: number;
  /** Counted time, without pauses and unbilled gaps. */
  elapsed_ms: number;
  free_remaining_ms: number;
  paid: boolean;
  /** The account's balance, after the burn of all its sessions. */
  credits: Credits;
  credits_per_minute: Credits;
  /** The limit that binds first. */
  limit: Limit | null;
  /** Time until `limit` binds; null if none does. */
  remaining_ms: number | null;
  ends_at: number | null;
  limits: { limit: Limit; remaining_ms: number | null }[];
  missed?: Notice[];
  server_time_at: number;
  /** Counted milliseconds for each real one: 1, except in a demonstration. */
  speed?: number;
}

export interface Tick {
  type: 'tick';
  session_id: string;
  elapsed_ms: number;
  free_remaining_ms: number;
  paid: boolean;
  credits: Credits;
  remaining_ms: number | null;
  limit: Limit | null;
}

export interface FreeTime {
  type: 'free_time';
  session_id: string;
  seq: number;
  free_remaining_ms: number;
  paid: boolean;
}

export interface LimitWarning {
  type: 'limit_warning';
  session_id: string;
  seq: number;
  limit: Limit;
  remaining_ms: number;
  threshold_ms: number;
}

export interface LimitCleared {
  type: 'limit_cleared';
  session_id: string;
  seq: number;
  limit: Limit;
  remaining_ms: number;
}

export interface LimitReached {
  type: 'limit_reached';
  session_id: string;
  seq: number;
  limit: Limit;
  stopped_at: number;
  /** Counted time at the stop: the figure to show. */
  elapsed_ms: number;
  /** Unbilled time to save, or to top up and `resume()`. */
  grace_ms: number;
}

export interface Minute {
  type: 'minute';
  session_id: string;
  /** Counted from 0. */
  minute: number;
  /** 1 to 60; only a session's last minute may be short. */
  seconds: number;
  credits: Credits;
}

export interface Receipt {
  session_id: string;
  kind: string;
  user_id: string;
  org_id: string | null;
  counterpart_id: string | null;
  started_at: number;
  ended_at: number;
  reason: StopReason;
  elapsed_ms: number;
  free_ms: number;
  /** Billed time, rounded up to whole increments. */
  billed_ms: number;
  minutes: number;
  credits: Credits;
  segments: { from_at: number; to_at: number }[];
  gaps: { from_at: number; to_at: number; billed: boolean }[];
  provider_ms?: number;
  difference_ms?: number;
  /** Further entries: what an external clock, or an operator, has corrected. */
  corrections?: { entry_id: string; at: number; credits: Credits; minutes: number; reason: string }[];
}

export interface Stopped {
  type: 'stopped';
  session_id: string;
  seq: number;
  reason: StopReason;
  limit?: Limit | null;
  receipt: Receipt;
}

export interface Credit {
  type: 'credit';
  account_id: string;
  credits: Credits;
  delta: Credits;
  reason: 'grant' | 'spend' | 'hold' | 'post' | 'void' | 'adjust' | 'expire';
  operation?: string;
  entry_id: string;
}

/** The member's month: after `auth`, and after each completed counting minute. */
export interface Usage {
  type: 'usage';
  month: string;
  member_used_ms: number;
  /** Null: no limit. */
  member_limit_ms: number | null;
  org_used_ms: number | null;
  org_limit_ms: number | null;
}

/** A message with a `seq`: kept by the server, delivered once. */
export type Notice = FreeTime | LimitWarning | LimitCleared | LimitReached | Stopped;

export interface ConnectionChange {
  state: ConnectionState;
  /** The close code that caused this state. */
  code: number | null;
  /** While `reconnecting`: the delay before the next attempt. */
  retry_in_ms: number | null;
  /**
   * Why there is no connection.
   *
   * In `offline` and `closed` this is the error that ended the connection. While several
   * attempts in a row fail, its code is `unreachable`. Otherwise it is null.
   */
  error: TaximeterError | null;
}

/** Told after a sleep, a freeze, the back/forward cache or a lost line, with right figures. */
export interface Resumed {
  /** How long the server was not heard. */
  away_ms: number;
  /** The notices of that time; each was dispatched as an event of its own, too. */
  missed: Notice[];
}

/** Figures at one instant: an estimate to show, never a bill. */
export interface Reading {
  state: State;
  elapsed_ms: number;
  free_remaining_ms: number;
  paid: boolean;
  /**
   * A number, for drawing.
   *
   * It glides to the credits of the last tick, and is never below them. The exact balance is
   * in `tick` and `session`.
   */
  credits: number;
  remaining_ms: number | null;
  limit: Limit | null;
  speed: number;
  /** What is left of the grace while `stopping`; null otherwise. */
  grace_left_ms: number | null;
}

/** A notice that a view keeps: all but `stopped`. */
export type ViewNotice = FreeTime | LimitWarning | LimitCleared | LimitReached;

/** The figures of a view: as of its last change; `session.now()` has those of this instant. */
export interface Figures {
  session_id: string;
  kind: string;
  /** False while the line is down: then the figures are those of the moment of the loss. */
  live: boolean;
  elapsed_ms: number;
  free_remaining_ms: number;
  paid: boolean;
  /** As in `Reading`. */
  credits: number;
  credits_per_minute: Credits;
  limit: Limit | null;
  remaining_ms: number | null;
  limits: { limit: Limit; remaining_ms: number | null }[];
  speed: number;
  ends_at: number | null;
  /** The newest eight. */
  notices: readonly ViewNotice[];
}

/** What a session looks like; frozen, and the same object until something has changed. */
export type SessionView =
  /** Nothing was started, or the session was left. */
  | { readonly status: 'off' }
  | { readonly status: 'starting'; readonly session_id: string }
  | Readonly<{ status: 'running' | 'paused' | 'suspended' } & Figures>
  | Readonly<
      {
        /** A limit was reached, and the grace runs. */
        status: 'stopping';
        /** What was left of the grace, if this client joined during it. */
        grace_ms?: number;
        /** By the server's clock; undefined if this client joined during the grace. */
        stopped_at?: number;
        /** By the server's clock; draw with `session.now().grace_left_ms`. */
        grace_ends_at?: number;
      } & Figures
    >
  | {
      readonly status: 'ended';
      readonly session_id: string;
      readonly reason: StopReason | null;
      readonly limit: Limit | null;
      readonly receipt: Receipt | null;
      readonly notices: readonly ViewNotice[];
    }
  /** It cannot start, or cannot be joined again. */
  | { readonly status: 'failed'; readonly session_id: string; readonly error: TaximeterError };

/** What a meter looks like; frozen, and the same object until something has changed. */
export interface MeterView {
  readonly connection: ConnectionState;
  /** Null before the first `welcome`. */
  readonly user_id: string | null;
  readonly account_id: string | null;
  /** The account's balance; null before the first `welcome`. */
  readonly credits: number | null;
  readonly usage: Usage | null;
  /** Why there is no connection: as `error` of a ConnectionChange. */
  readonly error: TaximeterError | null;
}

export declare class TaximeterError extends Error {
  constructor(
    code: ErrorCode,
    message: string,
    details?: {
      retryable?: boolean;
      retryAfterMs?: number | null;
      limit?: Limit | null;
      sessionId?: string | null;
      closeCode?: number | null;
      cause?: unknown;
    },
  );
  readonly name: 'TaximeterError';
  readonly code: ErrorCode;
  /** Whether the same request may succeed later. */
  readonly retryable: boolean;
  /** With `rate_limited`: the delay after which it may succeed, if known. */
  readonly retryAfterMs: number | null;
  /** With `limit_reached`: the limit. */
  readonly limit: Limit | null;
  readonly sessionId: string | null;
  /** The WebSocket's close code, where a close was the cause. */
  readonly closeCode: number | null;
}

/**
 * Thrown by a token function: the login is over.
 *
 * The connection becomes `offline` with the error `unauthenticated`, and the client makes no
 * further attempt until `connect()` or `switchUser()`.
 */
export declare class Unauthorized extends TaximeterError {
  constructor(message?: string);
}

export interface SessionEventMap {
  session: CustomEvent<SessionSnapshot>;
  tick: CustomEvent<Tick>;
  free_time: CustomEvent<FreeTime>;
  limit_warning: CustomEvent<LimitWarning>;
  limit_cleared: CustomEvent<LimitCleared>;
  limit_reached: CustomEvent<LimitReached>;
  minute: CustomEvent<Minute>;
  stopped: CustomEvent<Stopped>;
  error: CustomEvent<TaximeterError>;
  connection: CustomEvent<ConnectionChange>;
  resumed: CustomEvent<Resumed>;
}

export interface TaximeterEventMap {
  connection: CustomEvent<ConnectionChange>;
  resumed: CustomEvent<Resumed>;
  welcome: CustomEvent<Welcome>;
  credit: CustomEvent<Credit>;
  usage: CustomEvent<Usage>;
  error: CustomEvent<TaximeterError>;
}

type Listener<Target, Event_> =
  | ((this: Target, event: Event_) => unknown)
  | { handleEvent(event: Event_): unknown };

/** A view that changes, in the form that `useSyncExternalStore` takes; all three are bound. */
declare class Store<View> extends EventTarget {
  /** Calls `listener` after each change; returns a function that ends that. */
  readonly subscribe: (listener: () => void) => () => void;
  /** The view: the same object until something has changed. */
  readonly getSnapshot: () => View;
  /** The view on a server, and before a page has taken it over. */
  readonly getServerSnapshot: () => View;
}

/** A session in this browser, made by `Taximeter.start`, `retain` or `watch`. */
export declare class Session extends Store<SessionView> {
  private constructor();
  readonly sessionId: string;
  readonly state: State | 'starting';
  /** The last `session` message. */
  readonly snapshot: SessionSnapshot | null;
  readonly receipt: Receipt | null;
  /** The `lastSeq` to keep for `start` after a reload of the page. */
  readonly lastSeq: number | undefined;
  /** True after `stop()`. */
  readonly stopWanted: boolean;
  /**
   * Resolves with the first snapshot.
   *
   * Rejects with a TaximeterError if the session cannot start, or if the connection is given
   * up before the session has started.
   */
  readonly ready: Promise<SessionSnapshot>;
  /** The figures at this instant; null before the first snapshot. */
  now(): Reading | null;
  pause(): Promise<SessionSnapshot>;
  resume(): Promise<SessionSnapshot>;
  stop(): Promise<Stopped>;
  /** Leaves at once, whatever holders there are; nothing of the session is heard afterwards. */
  leave(): void;
  /** Adds a holder, and revives a leave that is due. */
  retain(): this;
  /**
   * Removes a holder.
   *
   * If there is none after a macrotask, the session is left, unless `start()` made it, or `stop()`
   * was called. What `watch()` follows it goes on to follow.
   */
  release(): void;
  addEventListener<Type extends keyof SessionEventMap>(
    type: Type,
    listener: Listener<Session, SessionEventMap[Type]> | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<Type extends keyof SessionEventMap>(
    type: Type,
    listener: Listener<Session, SessionEventMap[Type]> | null,
    options?: boolean | EventListenerOptions,
  ): void;
}

/** What the client takes from the browser. Tests replace it. */
export interface Platform {
  WebSocket: new (url: string, protocol: string) => WebSocket;
  /** Monotonic milliseconds. */
  now(): number;
  /** From 0 to 1, without 1. */
  random(): number;
  setTimeout(callback: () => void, delayMs: number): unknown;
  clearTimeout(timer: unknown): void;
}

export type Token = string | (() => string | null | Promise<string | null>);

export interface TaximeterOptions {
  /** Default: `/v1/ws` of this origin. http(s) becomes ws(s). */
  url?: string | URL;
  /**
   * The token, or a function that gets a new token.
   *
   * With a function the client renews the token before it expires. It calls the function again
   * when a call does not settle within `requestTimeoutMs`, or throws. Only a TaximeterError
   * that is not retryable ends the connection. A string that has expired, or that the server
   * refuses, ends the connection.
   */
  token?: Token | null;
  /**
   * How long a request waits for its answer. Default: 10,000.
   *
   * A request that the server refuses as too early (`rate_limited`) is sent again within that
   * time, as soon as the server accepts it.
   */
  requestTimeoutMs?: number;
  /** Bound of the first reconnect's wait; it doubles. Default: 500. */
  backoffFirstMs?: number;
  /** Bound of every wait before a reconnect. Default: 10,000. */
  backoffMostMs?: number;
  platform?: Partial<Platform>;
  /**
   * What connects where no WebSocket gets through: `StreamSocket` of `taximeter/fallback`.
   *
   * By default the client imports it after two attempts without a `welcome`; then the two ways
   * take turns until one gets through. Null: WebSockets only.
   */
  fallback?: typeof StreamSocket | null;
  /**
   * Shares one connection among all tabs of the user: `tabs` of `taximeter/tabs`.
   *
   * By default each tab has its own. It gets what connects, and the token, and returns what is
   * to connect instead.
   */
  tabs?: (WebSocket: SocketClass, token: string) => SocketClass;
}

/** What makes a connection, as `WebSocket` does. The client gives its `platform` as well. */
export type SocketClass = new (url: string, protocol: string, platform: Platform) => object;

export interface StartOptions {
  kind: string;
  sessionId: string;
  counterpartId?: string;
  /** 250 to 60,000. */
  tickMs?: number;
  /** At most 2 KiB as JSON. */
  metadata?: Record<string, unknown>;
  /** `lastSeq` of the session before a reload: later notices are delivered again. */
  lastSeq?: number;
}

export interface WatchOptions {
  /** As in `StartOptions`. */
  lastSeq?: number;
  /** For operators: the organisation of the session's user. */
  org?: string;
  /** For operators: the session's user, if that user has no organisation. */
  user?: string;
}

/** A connection to a server, with one `Session` for each id. */
export declare class Taximeter extends Store<MeterView> {
  /** Opens, arms and hears nothing: it may be called where there is no page. */
  constructor(options?: TaximeterOptions);
  readonly state: ConnectionState;
  /** The last `welcome`. */
  readonly welcome: Welcome | null;
  /** Connects: before the first `start`, after `offline`, or without waiting. */
  connect(): void;
  /** @throws TaximeterError `closed` after `close()`. */
  start(options: StartOptions): Session;
  /** @throws TaximeterError `closed` after `close()`. */
  watch(sessionId: string, options?: WatchOptions): Session;
  /**
   * The session of this id with one more holder; the first holder starts it.
   *
   * One that could not start is started again, for all its holders. Call `release()` of the session once for each call.
   *
   * @throws TaximeterError `closed` after `close()`.
   */
  retain(options: StartOptions): Session;
  /** The session of this id that this page runs, watches or holds. */
  find(sessionId: string): Session | undefined;
  /**
   * Leaves every session, and connects with the token of another user.
   *
   * Nothing that concerns the old user is heard afterwards. Null logs out: the connection is
   * `idle`, and nothing is open or armed.
   *
   * @throws TaximeterError `closed` after `close()`.
   */
  switchUser(token?: Token | null): void;
  close(): void;
  addEventListener<Type extends keyof TaximeterEventMap>(
    type: Type,
    listener: Listener<Taximeter, TaximeterEventMap[Type]> | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<Type extends keyof TaximeterEventMap>(
    type: Type,
    listener: Listener<Taximeter, TaximeterEventMap[Type]> | null,
    options?: boolean | EventListenerOptions,
  ): void;
}

/** Whether a client reconnects after a close code: not after 4500–4999. */
export declare function comesBackAfter(code: number): boolean;
