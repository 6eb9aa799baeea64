/**
 * The hooks and components of older applications, under their old names, on pushed figures.
 *
 * An old application changes its imports, puts a `<TaximeterProvider>` around itself, and removes
 * its polling, heartbeats and timers: nothing here makes a request, but the study page at its
 * beginning and end. Class names, texts and test ids are the old ones. Times are in seconds and
 * minutes, as the old names have them.
 */

import {
  createElement,
  useCallback,
  useEffect,
  useMemo,
  useRef,
  useState,
  useSyncExternalStore,
} from 'react';
import {
  Clock,
  formatClock,
  useCredits,
  useMeter,
  useNotices,
  useSession,
  useTaximeter,
  useUsage as usePushedUsage,
} from './react.js';
import { firstOf } from './records.js';
import { createStudy } from './study.js';

const MINUTE_MS = 60_000;
/** From this many minutes left on, the old hook warned. */
const APPROACHING_MINUTES = 10;

/** Minutes of the limit that leaves least: the member's own, or the organisation's. */
function limitOf(usage) {
  const limits = ['member', 'org']
    .map((owner) => [usage?.[`${owner}_used_ms`] ?? 0, usage?.[`${owner}_limit_ms`] ?? null])
    .filter(([, limitMs]) => limitMs !== null)
    .sort((a, b) => a[1] - a[0] - (b[1] - b[0]));
  const [usedMs, limitMs] = limits[0] ?? [usage?.member_used_ms ?? 0, null];
  const minutesUsed = Math.ceil(usedMs / MINUTE_MS);
  const minutesLimit = limitMs === null ? null : Math.floor(limitMs / MINUTE_MS);
  const minutesRemaining = limitMs === null ? null : Math.max(0, minutesLimit - minutesUsed);
  const isOverLimit = minutesRemaining === 0;
  return {
    minutesUsed,
    minutesLimit,
    minutesRemaining,
    percentageUsed: minutesLimit ? (100 * minutesUsed) / minutesLimit : isOverLimit ? 100 : 0,
    canRecord: !isOverLimit,
    isOverLimit,
    isApproachingLimit: minutesRemaining !== null && minutesRemaining < APPROACHING_MINUTES,
  };
}

/**
 * Counts a recording while `isRecording`, against the minutes of the month.
 *
 * The server counts, and keeps each minute. While `isRecording` is false the session pauses, and
 * it ends when the component is gone, or with `stop()`. When a limit is reached the server has
 * stopped counting, and `onLimitReached` gets the notice: stop the recorder then.
 */
export function useMinuteTracking({
  sessionId,
  isRecording,
  kind = 'recording',
  onApproachingLimit,
  onLimitReached,
}) {
  const meter = useMeter();
  const usage = usePushedUsage();
  const session = useSession(
    { kind, id: sessionId, enabled: useBegun(sessionId, isRecording) },
    ({ status, live, elapsed_ms, receipt, error, pause, resume, stop, retry }) => ({
      status,
      live,
      seconds: Math.floor((receipt?.elapsed_ms ?? elapsed_ms ?? 0) / 1000),
      error,
      pause,
      resume,
      stop,
      retry,
    }),
  );
  const { status, live, seconds, pause, resume, retry } = session;
  const wasRecording = useRef(isRecording);
  useEffect(() => {
    // A start that was refused, when the user records once more; a mount would retry without end.
    if (isRecording && !wasRecording.current) retry();
    wasRecording.current = isRecording;
  }, [isRecording, retry]);
  useEffect(() => {
    if (!live) return; // asked when the line is back
    // A refusal shows in the session's view.
    if (status === 'running' && !isRecording) pause().catch(() => {});
    if (status === 'paused' && isRecording) resume().catch(() => {});
  }, [status, live, isRecording, pause, resume]);
  useNotices(sessionId, (notice) => {
    if (notice.type === 'limit_warning') onApproachingLimit?.(notice);
    if (notice.type === 'limit_reached') onLimitReached?.(notice);
  });
  const checkUsageLimit = useCallback(() => firstOf(meter, (view) => view.usage).then(limitOf), [meter]);
  return {
    ...limitOf(usage),
    isTracking: status === 'running',
    isLoading: usage === null,
    sessionDuration: seconds,
    currentSessionMinutes: Math.ceil(seconds / 60),
    error: session.error ?? null,
    checkUsageLimit,
    stop: session.stop,
    retry,
  };
}

/** Whether the user has begun a recording of this id: a pause does not leave its session. */
function useBegun(sessionId, isRecording) {
  const { login } = useTaximeter();
  const recording = `${login} ${sessionId}`;
  const [begun, setBegun] = useState(null);
  if (isRecording && begun !== recording) setBegun(recording);
  return isRecording || begun === recording;
}

/**
 * The account's usage: `credits`, the month's minutes, and `triggerUsageUpdate`.
 *
 * The server pushes every change, whichever process makes it, so `triggerUsageUpdate` requests
 * nothing. It makes the next attempt at once where the connection is lost.
 */
export function useUsage() {
  const meter = useMeter();
  const usage = usePushedUsage();
  const credits = useCredits();
  const triggerUsageUpdate = useCallback(() => meter.connect(), [meter]);
  return {
    ...limitOf(usage),
    credits,
    isLoading: credits === null,
    triggerUsageUpdate,
  };
}

/** Old times have a fixed width. */
const formatTime = (ms) => formatClock(ms).padStart(5, '0');
const formatCredits = (credits) => credits.toFixed(2);

const row = (label, ...value) =>
  createElement(
    'div',
    { className: 'flex justify-between items-center' },
    createElement('span', { className: 'text-xs font-medium text-gray-500' }, label),
    createElement('span', { className: 'text-xs font-mono' }, ...value),
  );

/**
 * The time of a chat with an advisor; `showDetails` adds free time and credits.
 *
 * It holds the chat's session, as the old parent did with its heartbeats.
 */
export function SimpleTimeDisplay({ advisorId, chatId, showDetails = false, kind = 'chat' }) {
  const isPaidTime = useSession(
    { kind, id: chatId, counterpartId: advisorId },
    ({ paid = false }) => paid,
  );
  const credits = useCredits(formatCredits) ?? '0.00';
  const clock = (className, figure) =>
    createElement(Clock, { session: chatId, className, figure, format: formatTime });
  if (!showDetails) return clock('font-mono text-sm');
  return createElement(
    'div',
    { className: 'w-full rounded-md bg-white p-3 border border-gray-200' },
    createElement('h3', { className: 'font-medium mb-2 text-center text-sm' }, 'Time Tracking'),
    createElement('div', { className: 'flex justify-center mb-3' }, clock('font-mono text-lg')),
    createElement(
      'div',
      { className: 'flex flex-col space-y-1.5' },
      row('Free time:', clock(undefined, 'free_remaining_ms')),
      row('Credits:', credits),
      isPaidTime &&
        createElement(
          'div',
          { className: 'mt-1 bg-amber-100 p-1 rounded text-amber-800 text-xs' },
          'Using paid credits',
        ),
    ),
  );
}

/** The time of this recording, and the month's minutes with a bar where there is a limit. */
export function UsageDisplay({ sessionId, className }) {
  const usage = limitOf(usePushedUsage());
  const { minutesUsed, minutesLimit, isOverLimit, isApproachingLimit } = usage;
  const state = isOverLimit ? 'over' : isApproachingLimit ? 'approaching' : 'normal';
  const text =
    minutesLimit === null
      ? `${minutesUsed} minutes used this month`
      : `${minutesUsed} of ${minutesLimit} minutes used this month`;
  return createElement(
    'div',
    { className, 'data-testid': 'usage-display', 'data-state': state },
    sessionId && createElement(Clock, { session: sessionId, format: formatTime }),
    createElement('span', { 'data-testid': 'usage-text' }, text),
    minutesLimit !== null &&
      createElement('progress', {
        'aria-label': text,
        max: Math.max(1, minutesLimit),
        value: Math.min(minutesUsed, Math.max(1, minutesLimit)),
      }),
  );
}

/** The credits that are left. */
export function UsageTracker({ className }) {
  const credits = useCredits(formatCredits);
  const text = credits === null ? '–' : `${credits} credits`;
  return createElement('div', { className, 'data-testid': 'usage-tracker' }, text);
}

/**
 * The time of a study page beside a call of an outside provider, and the day's hours.
 *
 * The provider's events begin and end the time, whether or not a page is open. `startTracking`
 * asks for its session and follows it, and `endTracking` answers its minutes. Where no provider is
 * set up, the time between the two counts. Neither rejects: `error` says why a request failed.
 */
export function useStreamStudyTimeTracker(callId) {
  const meter = useMeter();
  const study = useMemo(() => createStudy(meter, callId), [meter, callId]);
  const view = useSyncExternalStore(study.subscribe, study.getSnapshot, study.getSnapshot);
  const { startTracking, endTracking } = study;
  return { ...view, startTracking, endTracking };
}
