/** Types of the elements, elements.js. */

import type { Session, Taximeter } from './taximeter.js';

/** What all elements have in common. */
export declare class TaximeterElement extends HTMLElement {
  static readonly observedAttributes: string[];
  /** The element's own meter, or that of `use()`. */
  meter: Taximeter | null;
  /** The session that is shown. */
  readonly shown: Session | null;
  /** The language of the nearest `lang`; undefined if there is none. */
  readonly locale: string | undefined;
}

/** The time of a session. */
export declare class TaximeterClock extends TaximeterElement {}

/** The balance of the account. */
export declare class TaximeterCredits extends TaximeterElement {}

/** The month's usage. */
export declare class TaximeterUsage extends TaximeterElement {}

/** Warnings as toasts, and the stop at a limit. */
export declare class TaximeterNotices extends TaximeterElement {
  /**
   * Shows a text for a while, in the colour of a level.
   *
   * It replaces an earlier one about the same topic; by default the text is the topic.
   */
  toast(text: string, level?: 'ok' | 'near' | 'over', topic?: string): HTMLElement;
}

/** Gives a meter to all elements of the page that have none of their own; null takes it away. */
export declare function use(meter: Taximeter | null): void;

/** Renders all elements of the page again, after a change of `words`. */
export declare function refresh(): void;

/** The forms of a word, by the categories of `Intl.PluralRules`. */
export interface Plural {
  other: string;
  zero?: string;
  one?: string;
  two?: string;
  few?: string;
  many?: string;
}

/** Every text that the elements show; `{…}` is a place for a figure. */
export interface Words {
  asOf: string;
  credits: Plural;
  dismiss: string;
  /** The names of a clock's figures. */
  elapsed: string;
  remaining: string;
  free: string;
  used: string;
  usedOf: string;
  upgrade: string;
  freeTimeOver: string;
  cleared: string;
  stopped: string;
  stoppedAt: string;
  notCharged: string;
  topUp: string;
  save: string;
  secondsLeft: Plural;
  warning: string;
  /** By limit: what comes soon, why a session stopped, and its name. */
  limits: Record<string, { soon: string; why: string; name: string }>;
}

export declare const words: Words;

declare global {
  interface HTMLElementTagNameMap {
    'taximeter-clock': TaximeterClock;
    'taximeter-credits': TaximeterCredits;
    'taximeter-usage': TaximeterUsage;
    'taximeter-notices': TaximeterNotices;
  }
}
