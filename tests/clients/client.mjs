// Chats with one of the libraries, each reading to the end through cuts: node client.mjs WAY [URL THREAD]...
// Prints for each URL its thread, items and last event as a line of JSON. The packages are those of the current folder.
import { randomUUID } from "node:crypto";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(`${process.cwd()}/`);
const load = (name) => import(pathToFileURL(require.resolve(name)).href);

/** The whole text of each item, and the title of each document; `last` is there once the run has ended. */
class Reply {
  items = [];
  titles = {};
  last = null;

  take(data) {
    const event = JSON.parse(data);
    if (event.type === "end" || event.type === "error") this.last = event;
    if (!("item" in event)) return;
    this.items[event.item] = (this.items[event.item] ?? "") + event.content;
    if ("title" in event) this.titles[event.item] = event.title;
  }
}

const body = (thread) => JSON.stringify({ message: "Draft an NDA", thread_id: thread });
const getOf = (url, thread, key) =>
  `${url}/chat?message=Draft+an+NDA&thread_id=${thread}${key ? `&idempotency_key=${randomUUID()}` : ""}`;

async function eventSource(url, thread, reply, key = true) {
  const { EventSource } = await load("eventsource");
  const source = new EventSource(getOf(url, thread, key));
  await new Promise((done) => {
    source.onmessage = (message) => {
      reply.take(message.data);
      if (reply.last) done(source.close());
    };
    source.onerror = () => source.readyState === EventSource.CLOSED && done();
  });
}

async function parser(url, thread, reply) {
  const { createParser } = await load("eventsource-parser");
  const headers = { "Content-Type": "application/json", "Idempotency-Key": randomUUID() };
  while (!reply.last) {
    try {
      const answer = await fetch(`${url}/api/chat`, { method: "POST", headers, body: body(thread) });
      if (answer.status !== 200) return;
      const onEvent = ({ id, data }) => {
        reply.take(data);
        headers["Last-Event-ID"] = id;
      };
      const frames = createParser({ onEvent });
      const decoder = new TextDecoder();
      for await (const bytes of answer.body) frames.feed(decoder.decode(bytes, { stream: true }));
    } catch {
      // the connection broke; it goes on behind the last whole event
    }
  }
}

/** As in docs/api.md. The library needs a window. */
async function fetchEventSource(url, thread, reply) {
  globalThis.window ??= globalThis;
  globalThis.document ??= { addEventListener() {}, removeEventListener() {} };
  const { fetchEventSource } = await load("@microsoft/fetch-event-source");
  const stop = new AbortController();
  let seen;
  await fetchEventSource(`${url}/api/chat`, {
    method: "POST",
    headers: { "Content-Type": "application/json", "Idempotency-Key": randomUUID() },
    body: body(thread),
    signal: stop.signal,
    fetch(url, options) {
      if (seen) options.headers["last-event-id"] = seen;
      else delete options.headers["last-event-id"];
      return fetch(url, options);
    },
    onmessage(message) {
      if (!message.data) return; // a heartbeat
      seen = message.id;
      reply.take(message.data);
      if (reply.last) stop.abort();
    },
  });
}

const WAYS = {
  eventsource: eventSource,
  "eventsource without a key": (url, thread, reply) => eventSource(url, thread, reply, false),
  "eventsource-parser": parser,
  "fetch-event-source": fetchEventSource,
};

const [way, ...places] = process.argv.slice(2);
const chats = [];
for (let at = 0; at < places.length; at += 2) {
  const [url, thread] = places.slice(at, at + 2);
  const reply = new Reply();
  chats.push(WAYS[way](url, thread, reply).then(() => console.log(JSON.stringify({ thread, ...reply }))));
}
await Promise.all(chats);
