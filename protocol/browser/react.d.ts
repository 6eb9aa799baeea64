/**
 * Types of the React bindings, react.js.
 */

import type { ComponentType, HTMLAttributes, ReactNode } from 'react';
import type {
  ConnectionState,
  MeterView,
  SessionSnapshot,
  SessionView,
  Stopped,
  Taximeter,
  TaximeterError,
  TaximeterOptions,
  Token,
  Usage,
  ViewNotice,
} from './taximeter.js';

/** What a server has rendered, for the first render of the browser. */
export interface Initial {
  meter?: Partial<MeterView>;
  /** By session id. */
  sessions?: Record<string, SessionView>;
}

interface Given {
  meter: Taximeter;
  url?: undefined;
  token?: undefined;
  tabs?: undefined;
  user?: undefined;
}

interface Own {
  meter?: undefined;
  /** `/v1/ws` by default. */
  url?: string;
  /** The newest counts, so an inline function is fine; null logs out. */
  token: Token | null | undefined;
  /** Any text that names who is logged in: another one leaves every session of the old user. */
  user?: string | number;
  /** `tabs` of taximeter/tabs: one connection for all tabs of a user. */
  tabs?: TaximeterOptions['tabs'];
}

/**
 * Gives a meter to the components below.
 *
 * Either `meter`, or `url` and `token` for a meter that lives as long as the provider. For
 * another user give another `user`.
 */
export function TaximeterProvider(
  props: (Given | Own) & { initial?: Initial; children?: ReactNode },
): ReactNode;

/** The meter of the provider, for what no hook does. */
export function useMeter(): Taximeter;

export interface SessionOptions {
  kind: string;
  /** The session's id; nothing starts without it. */
  id: string | null | undefined;
  /** False: the component does not hold the session. True by default. */
  enabled?: boolean;
  counterpartId?: string;
  tickMs?: number;
  metadata?: Record<string, unknown>;
  lastSeq?: number;
  /** The view of the first render, where a server has rendered it. */
  initial?: SessionView;
}

/** They reject with the code `closed` while the component does not hold the session. */
export interface SessionActions {
  pause(): Promise<SessionSnapshot>;
  resume(): Promise<SessionSnapshot>;
  stop(): Promise<Stopped>;
  /** Starts a session that is `failed` again, for all that hold it; else it does nothing. */
  retry(): void;
}

/**
 * Starts a session, or joins it, while the component is mounted and `enabled`.
 *
 * Returns the session's view with its actions, or what `select` makes of them. A view changes
 * with every tick: select what you show, and use `<Clock>` for the time. `kind` and `id` say
 * which session; the rest counts when the session starts.
 */
export function useSession(options: SessionOptions): SessionView & SessionActions;
export function useSession<Selected>(
  options: SessionOptions,
  select: (session: SessionView & SessionActions) => Selected,
): Selected;

/** The month's usage as the server pushed it last, or null; or what `select` makes of it. */
export function useUsage(): Usage | null;
export function useUsage<Selected>(select: (usage: Usage | null) => Selected): Selected;

/** The account's balance, or null before it is known; or what `select` makes of it. */
export function useCredits(): number | null;
export function useCredits<Selected>(select: (credits: number) => Selected): Selected | null;

/** Whether figures are live, and if not, why. */
export function useConnection(): { connection: ConnectionState; error: TaximeterError | null };

/**
 * The newest notices of a session, at most eight, the oldest first.
 *
 * `listener` gets each notice that comes while the component is mounted, once.
 */
export function useNotices(
  id: string,
  listener?: (notice: ViewNotice) => void,
): readonly ViewNotice[];

/** A duration as `0:07`, `12:30` or `1:02:03`. */
export function formatClock(ms: number): string;

export interface ClockProps extends HTMLAttributes<HTMLSpanElement> {
  /** The session's id. */
  session: string;
  figure?: 'elapsed_ms' | 'remaining_ms' | 'free_remaining_ms';
  format?: (ms: number) => string;
  initial?: SessionView;
}

/** The time of a session; it writes its text in animation frames and renders once. */
export const Clock: ComponentType<ClockProps>;
