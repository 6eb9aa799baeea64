/** Constructs the client where there is no page, and posts its state. */
import { Taximeter } from '/client/taximeter.js';

postMessage(new Taximeter().getSnapshot().connection);
