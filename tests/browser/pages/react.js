// What a test of the React bindings needs, bundled by esbuild into one script.
import './react_refresh.js';
import * as React from 'react';
import * as ReactDOM from 'react-dom';
import { createRoot, hydrateRoot } from 'react-dom/client';
import * as client from '../../../protocol/browser/taximeter.js';
import * as bindings from '../../../protocol/browser/react.js';
import * as records from '../../../protocol/browser/react-records.js';
import * as legacy from '../../../protocol/browser/react-legacy.js';
import { page } from './react_page.js';

Object.assign(window, client, bindings, {
  legacy,
  records,
  React,
  ReactDOM,
  createRoot,
  hydrateRoot,
  page,
  h: React.createElement,
  root: createRoot(document.body.appendChild(document.createElement('main'))),
});
