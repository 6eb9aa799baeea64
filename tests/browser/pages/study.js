// A study page of the old shape on the new hook, as it was beside a video call.
import * as React from 'react';
import { createRoot } from 'react-dom/client';
import * as client from '../../../protocol/browser/taximeter.js';
import { TaximeterProvider } from '../../../protocol/browser/react.js';
import { useStreamStudyTimeTracker } from '../../../protocol/browser/react-legacy.js';

const h = React.createElement;

function StudyRoom({ call, callingState }) {
  const tracker = useStreamStudyTimeTracker(call?.id);
  const { startTracking, endTracking, isTracking, dailyHours, error } = tracker;

  // Start tracking when the call is joined, as the old page did.
  React.useEffect(() => {
    if (callingState === 'joined' && call?.id) startTracking();
  }, [callingState, call?.id]);

  // End tracking on unmount.
  React.useEffect(
    () => () => {
      if (isTracking) endTracking();
    },
    [],
  );

  const leave = async () => {
    window.ended = await endTracking();
  };
  return h(
    'section',
    { style: { font: '16px sans-serif', padding: '1rem' } },
    h('h1', null, 'Study room'),
    h('p', { 'data-testid': 'state' }, isTracking ? 'Studying' : 'Not in a call'),
    h('p', null, 'Today: ', h('b', { 'data-testid': 'hours' }, dailyHours.toFixed(2)), ' hours'),
    error && h('p', { role: 'alert' }, error.code),
    h('button', { type: 'button', onClick: leave }, 'Leave'),
  );
}

const root = createRoot(document.body.appendChild(document.createElement('main')));

/** Shows the room; `call` and `callingState` are those of the provider's client. */
window.show = (meter, call, callingState) =>
  root.render(
    h(React.StrictMode, null,
      h(TaximeterProvider, { meter }, h(StudyRoom, { call, callingState }))),
  );
/** Shows the room below a provider with a meter of its own. */
window.showOwn = (url, token, call, callingState) =>
  root.render(
    h(TaximeterProvider, { url, token }, h(StudyRoom, { call, callingState })),
  );
window.hide = () => root.render(null);
Object.assign(window, client);
