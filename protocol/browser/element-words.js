/**
 * The words of the elements, in one object, and the formats of figures.
 */

/**
 * Every text that an element shows.
 *
 * A page may change it before or after the elements are there: `Object.assign(words, …)`, and
 * then `refresh()`. `{…}` is a place for a figure.
 */
export const words = {
  asOf: 'as of {time}',
  credits: { one: 'credit', other: 'credits' },
  dismiss: 'Dismiss',
  elapsed: 'Time',
  remaining: 'Time left',
  free: 'Free time left',
  used: '{used} used',
  usedOf: '{used} of {limit}',
  upgrade: 'Upgrade',
  freeTimeOver: 'Your free time is over. Credits are used from now on.',
  cleared: '{limit}: there is enough again.',
  stopped: 'Stopped: {why}',
  stoppedAt: 'The meter stopped at {time}.',
  notCharged: 'Nothing more is charged.',
  topUp: 'Top up to go on where you were.',
  save: 'Save your work now.',
  secondsLeft: { one: 'second left', other: 'seconds left' },
  warning: '{limit} in {time}.',
  limits: {
    credits: { soon: 'Your credits run out', why: 'out of credits', name: 'Credits' },
    member_minutes: {
      soon: 'Your minutes of this month end',
      why: 'your month is used up',
      name: 'Your month',
    },
    org_minutes: {
      soon: 'Your organisation’s minutes end',
      why: 'your organisation’s month is used up',
      name: 'Your organisation’s month',
    },
    member_day_minutes: {
      soon: 'Your minutes of today end',
      why: 'your day is used up',
      name: 'Your day',
    },
    org_day_minutes: {
      soon: 'Your organisation’s minutes of today end',
      why: 'your organisation’s day is used up',
      name: 'Your organisation’s day',
    },
    session_cap: {
      soon: 'This session reaches its maximum length',
      why: 'this session has reached its maximum length',
      name: 'Maximum length',
    },
  },
};

/** Puts values into a text's places. */
export const fill = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);

/** The words of a limit; a limit that is not known here has its own name. */
export const wordsOf = (limit) =>
  words.limits[limit] ?? { soon: limit, why: limit, name: limit };

const formats = new Map();

/** One format for each language and use: to make one takes longer than to use it. */
function formatOf(Format, locale, options) {
  const key = Format.name + locale + JSON.stringify(options);
  if (!formats.has(key)) formats.set(key, new Format(locale, options));
  return formats.get(key);
}

/** A number in the language of a page; undefined is the browser's. */
export const formatNumber = (locale, value, options = {}) =>
  formatOf(Intl.NumberFormat, locale, options).format(value);

/** The form of a word that goes with a number. */
export const plural = (locale, forms, value, options = {}) =>
  forms[formatOf(Intl.PluralRules, locale, options).select(value)] ?? forms.other;

/** A duration as `0:07`, `12:30` or `1:02:03`, in the digits of the language. */
export function formatClock(locale, ms) {
  const seconds = Math.floor(Math.max(0, ms) / 1000);
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  if (!parts[0]) parts.shift();
  const two = { minimumIntegerDigits: 2 };
  return parts.map((part, at) => formatNumber(locale, part, at ? two : {})).join(':');
}

/** Hours and minutes with their units; an unfinished minute counts as one. */
export function formatHours(locale, ms) {
  const all = Math.ceil(ms / 60_000);
  const parts = [[Math.floor(all / 60), 'hour'], [all % 60, 'minute']];
  return parts
    .filter(([value, unit]) => value || (!all && unit === 'minute'))
    .map(([value, unit]) => formatNumber(locale, value, { style: 'unit', unit }))
    .join(' ');
}

/** A time of day. */
export const formatTime = (locale, at) =>
  formatOf(Intl.DateTimeFormat, locale, { timeStyle: 'medium' }).format(at);
