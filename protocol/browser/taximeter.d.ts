/**
 * Types of the browser client, taximeter.js.
 *
 * Fields have the names and units of the wire: `_ms` is integer milliseconds, `_at` epoch
 * milliseconds, credits are decimal strings with at most six decimals.
 */

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
}

export interface TaximeterEventMap {
  connection: CustomEvent<ConnectionChange>;
  welcome: CustomEvent<Welcome>;
  credit: CustomEvent<Credit>;
  error: CustomEvent<TaximeterError>;
}

type Listener<Target, Event_> =
  | ((this: Target, event: Event_) => unknown)
  | { handleEvent(event: Event_): unknown };

/** A session in this browser, made by `Taximeter.start` or `Taximeter.watch`. */
export declare class Session extends EventTarget {
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
  leave(): void;
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
  token: string | (() => string | Promise<string>);
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
}

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
export declare class Taximeter extends EventTarget {
  constructor(options: TaximeterOptions);
  readonly state: ConnectionState;
  /** The last `welcome`. */
  readonly welcome: Welcome | null;
  /** Connects: before the first `start`, after `offline`, or without waiting. */
  connect(): void;
  /** @throws TaximeterError `closed` after `close()`. */
  start(options: StartOptions): Session;
  /** @throws TaximeterError `closed` after `close()`. */
  watch(sessionId: string, options?: WatchOptions): Session;
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
