/**
 * Types of the old hooks and components, react-legacy.js.
 */

import type { ReactNode } from 'react';
import type { LimitReached, LimitWarning, Stopped, TaximeterError } from './taximeter.js';

/** The month's minutes, by the limit that leaves least: the member's own, or the organisation's. */
export interface MonthlyMinutes {
  minutesUsed: number;
  /** Null: there is no limit. */
  minutesLimit: number | null;
  minutesRemaining: number | null;
  /** 0 to 100, and above where overage is allowed. */
  percentageUsed: number;
  canRecord: boolean;
  isOverLimit: boolean;
  /** Less than ten minutes are left. */
  isApproachingLimit: boolean;
}

export interface MinuteTracking extends MonthlyMinutes {
  /** Whether the server counts now. */
  isTracking: boolean;
  /** No figures of the month have come yet. */
  isLoading: boolean;
  /** Counted seconds of this session. */
  sessionDuration: number;
  currentSessionMinutes: number;
  /** Why the session could not start; null: it could. */
  error: TaximeterError | null;
  /** Ask before a recording starts; connects, and makes no request. */
  checkUsageLimit(): Promise<MonthlyMinutes>;
  stop(): Promise<Stopped>;
  /** Starts again what could not start; so does recording once more. */
  retry(): void;
}

/** Counts a recording while `isRecording`; while it is false the session pauses. */
export function useMinuteTracking(options: {
  sessionId: string;
  isRecording: boolean;
  /** `recording` by default. */
  kind?: string;
  onApproachingLimit?: (notice: LimitWarning) => void;
  /** Counting has stopped: stop the recorder. */
  onLimitReached?: (notice: LimitReached) => void;
}): MinuteTracking;

/** The account's usage; the server pushes each change. */
export function useUsage(): MonthlyMinutes & {
  credits: number | null;
  isLoading: boolean;
  /** Requests nothing; where the connection is lost, makes the next attempt at once. */
  triggerUsageUpdate(): void;
};

/** The time of a chat with an advisor; `showDetails` adds free time and credits. */
export function SimpleTimeDisplay(props: {
  advisorId: string;
  chatId: string;
  showDetails?: boolean;
  /** `chat` by default. */
  kind?: string;
}): ReactNode;

/** The time of this recording and the month's minutes; test id `usage-display`. */
export function UsageDisplay(props: { sessionId?: string; className?: string }): ReactNode;

/** The credits that are left; test id `usage-tracker`. */
export function UsageTracker(props: { className?: string }): ReactNode;

/** A user's part in a call, as the server knows it. */
export interface StudySession {
  success: true;
  userId: string;
  callId: string;
  isActive: boolean;
  /** The session that counts the time; null: the provider has not said. */
  sessionId: string | null;
  /** Whole minutes, to the nearest. */
  duration: number;
  durationSeconds: number;
  /** Whose figure `duration` is: the provider's, ours, or the page's. */
  clock: 'provider' | 'own' | 'page' | null;
  joinedAt: string | null;
  leftAt: string | null;
}

/** The time of a study page beside a call of an outside provider. */
export function useStreamStudyTimeTracker(callId: string | undefined): {
  /** Asks for the call's session, and follows it. Never rejects. */
  startTracking(): Promise<void>;
  /** Null: there was nothing to end, or no answer; see `error`. Never rejects. */
  endTracking(): Promise<StudySession | null>;
  /** From the start's answer to the end of the session. */
  isTracking: boolean;
  /** Hours of the user's calls today, with those of this one so far. */
  dailyHours: number;
  /** Why the last request failed; null: it did not. */
  error: TaximeterError | null;
};
