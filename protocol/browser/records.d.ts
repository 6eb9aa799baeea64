/**
 * Types of records.js: estimates, and the list of sessions.
 */

import type { Credits, Limit, MeterView, Receipt, State, Taximeter } from './taximeter.js';

export interface Estimate {
  account_id: string;
  kind: string;
  counterpart_id: string | null;
  /** False: `limit` forbids a start. */
  can_start: boolean;
  credits: Credits;
  credits_per_minute: Credits;
  free_remaining_ms: number;
  /** How long until `limit` binds; null: nothing does. */
  remaining_ms: number | null;
  limit: Limit | null;
  limits: { limit: Limit; remaining_ms: number | null }[];
  speed: number;
  server_time_at: number;
}

export interface EstimateOptions {
  /** May be left out with the `sessionId` of a prepared session. */
  kind?: string;
  counterpartId?: string;
  sessionId?: string;
}

/**
 * What a session would show if it started now; nothing is reserved.
 *
 * This and the other functions here reject with the code `closed` when the user changes
 * meanwhile.
 */
export function estimate(meter: Taximeter, options: EstimateOptions): Promise<Estimate>;

export interface SessionListed {
  session_id: string;
  kind: string;
  state?: State | null;
  user_id: string;
  org_id?: string | null;
  counterpart_id?: string | null;
  started_at: number;
  ended_at?: number | null;
  elapsed_ms?: number | null;
  credits?: Credits | null;
  limit?: Limit | null;
  /** Once it has ended. */
  receipt?: Receipt | null;
}

export interface ListOptions {
  kind?: string;
  counterpartId?: string;
  /** Epoch milliseconds of the start, included. */
  from?: number;
  /** Epoch milliseconds of the start, excluded. */
  to?: number;
  /** The `next_cursor` of the page before. */
  cursor?: string;
  limit?: number;
}

export interface SessionPage {
  items: SessionListed[];
  /** Null: this was the last page. */
  next_cursor: string | null;
}

/** A page of the user's sessions, past and live, newest first, with their receipts. */
export function listSessions(meter: Taximeter, options?: ListOptions): Promise<SessionPage>;

/** Promises what `pick` finds in the meter's view; connects for it. */
export function firstOf<Found>(
  meter: Taximeter,
  pick: (view: MeterView) => Found | null | undefined,
): Promise<Found>;
