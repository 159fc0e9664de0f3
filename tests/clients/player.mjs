// Calls the npm client as pytest asks (tests/clients/node.py). Each line of standard input is one call:
//   {id, client: {baseURL, timeout, maxRetries}, method: "agents.messages.create", args: [...],
//    read: "answer" | "pages" | "stream", take: how many chunks to read before hanging up, or null}
// and each line of standard output something that happened in it: `sent` and `ended` (one HTTP request), `item` (a
// chunk, or an element of a list), and last `answer` or `error`. It ends with its standard input.

import { createInterface } from 'node:readline';
import { Letta } from '@letta-ai/letta-client';

function tell(id, event) {
  process.stdout.write(JSON.stringify({ id, ...event }) + '\n');
}

function watched(id) {
  return async (url, init) => {
    if (new URL(url).hostname !== '127.0.0.1') throw new Error(`Tests stay on this machine: ${url}`);
    tell(id, { sent: new Headers(init.headers).get('x-stainless-retry-count') });
    try {
      const response = await fetch(url, init);
      tell(id, { ended: response.status });
      return response;
    } catch (error) {
      tell(id, { ended: error.name });
      throw error;
    }
  };
}

function bound(client, method) {
  const names = method.split('.').map((name) => name.replace(/_(.)/g, (_, letter) => letter.toUpperCase()));
  const last = names.pop();
  const resource = names.reduce((found, name) => found[name], client);
  return resource[last].bind(resource);
}

async function play({ id, client, method, args, read, take }) {
  const letta = new Letta({ ...client, apiKey: 'unused', fetch: watched(id) });
  try {
    const called = bound(letta, method)(...args);
    if (read === 'answer') return tell(id, { answer: (await called) ?? null });
    let left = take ?? Infinity;
    for await (const item of read === 'stream' ? await called : called) {
      tell(id, { item });
      if (--left === 0) break;
    }
    tell(id, { answer: null });
  } catch (error) {
    const { status = null, error: body = null } = error;
    tell(id, { error: { kind: error.constructor.name, status, body, text: String(error) } });
  }
}

createInterface({ input: process.stdin }).on('line', (line) => play(JSON.parse(line)));
