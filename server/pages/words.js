/**
 * The texts of the page, formats of figures, and helpers for elements.
 *
 * All words are in one object, that of the custom elements: the page adds its own.
 */

import { put } from '/client/element-base.js';
import { fill } from '/client/element-words.js';
import { words } from '/client/elements.js';

export { fill, put, words };

Object.assign(words, {
  connections: {
    idle: 'Not connected',
    connecting: 'Connecting',
    live: 'Live',
    reconnecting: 'Reconnecting',
    offline: 'Offline',
    closed: 'Offline',
  },
  problems: {
    limit_reached: 'There is nothing left to run on. Top up, and start again.',
    unavailable: 'The server cannot take this at the moment. Try again in a little while.',
    rate_limited: 'Too many requests at once. Try again in a little while.',
    unknown_kind: 'The rate card of this server has no such kind.',
    forbidden: 'This session belongs to another user.',
    session_ended: 'This session has ended.',
    timeout: 'The server did not answer in time.',
    offline: 'There is no connection to the server.',
  },
  reasons: {
    client: 'ended by you',
    operator: 'ended by an operator',
    disconnected: 'ended after the connection was lost',
    call_ended: 'ended with the call',
    node_lost: 'ended when a server was lost',
    unavailable: 'ended when the meter could not be reached',
    limit: 'at its limit',
  },
  tokenRefused: 'That token was refused.',
  connectionEnded: 'The connection has ended.',
  cannotReach: 'This page cannot reach the meter.',
  keepsTrying: 'It keeps trying.',
  tryNow: 'Try now',
  tryAgain: 'Try again',
  noTopUp: 'Topping up is part of the demonstration only.',
  added: { one: '{count} credit was added.', other: '{count} credits were added.' },
  price: { one: '{count} credit a minute', other: '{count} credits a minute' },
  noPrice: 'This costs no credits.',
  noLimit: 'No limit in sight',
  limitAt: 'at {time}, in {left}',
  limitAfter: 'after {left} more',
  howLongTalk: 'How long may I talk?',
  howLongRecord: 'How long may I record?',
  amount: { one: '{count} credit', other: '{count} credits' },
  mayRun: '{time} on the meter. {limit} then.',
  mayRunFree: '{time} on the meter, the first {free} of it free. {limit} then.',
  mayRunOn: 'As long as you like: no limit is in sight.',
  mayNotStart: 'Not now: {why}.',
  pastOne: '{day} · {time}',
  showReceipt: 'Show the receipt',
});

export const byId = (id) => document.getElementById(id);
const plurals = new Intl.PluralRules('en-GB');
export const calm = matchMedia('(prefers-reduced-motion: reduce)');

/** The name of a kind; `chat-demo` is a chat, too. */
export const nameOfKind = (kind) => (kind.startsWith('chat') ? 'Chat' : 'Recording');

export function clockFace(ms) {
  const seconds = Math.floor(ms / 1000);
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  const pad = (number) => String(number).padStart(2, '0');
  const head = hours ? `${hours}:${pad(minutes)}` : `${minutes}`;
  return `${head}:${pad(seconds % 60)}`;
}
export const countdown = (ms) => clockFace(Math.ceil(ms / 1000) * 1000);
export const timeOfDay = (at) => new Date(at).toLocaleTimeString('en-GB');
/** A text with a number, in the form that goes with it. */
export const count = (forms, value) => fill(forms[plurals.select(value)], { count: value });
export const explain = (error) => words.problems[error.code] ?? error.message;

/** A server's message as a sentence. */
export const sentence = (text) =>
  `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?…]$/.test(text) ? '' : '.'}`;

/** Makes an element with children; undefined attributes are left out. */
export function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
