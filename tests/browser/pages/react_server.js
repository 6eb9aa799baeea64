// Renders the page as a server does, and fails if that opens or arms anything.
import { renderToString } from 'react-dom/server';
import { Taximeter } from '../../../protocol/browser/taximeter.js';
import { page } from './react_page.js';

console.error = (...args) => {
  throw new Error(args.join(' '));
};
const meter = new Taximeter({ token: () => 'token-1' });
const html = renderToString(page(meter));
if (meter.state !== 'idle') throw new Error(meter.state);
console.log(html);
