// A typed subscriber: the last message of each kind first, then every message, once and in order; what is missed is
// counted. How a snapshot is taken, and why two hellos prove that nothing was missed since: see ../../publisher.py.
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { decode } from "@msgpack/msgpack";
import * as zmq from "zeromq";
import { type Message, type SnapshotEnd, VERSION } from "./messages.js";

export type Topic = Message["topic"];

/** One message. `fresh` is false for the last of its kind, published before this subscriber joined. */
export interface Received<M extends Message = Message> {
  message: M;
  /** The frames that `message.payloads` describes: pictures as they are, arrays as little-endian numbers. */
  payloads: Buffer[];
  fresh: boolean;
}

const LANES = 2;
const PATIENCE = 1000; // ms for an answer
const SILENCE = 2000; // ms without a message before asking whether one was missed
const MOST = 10_000; // messages that wait for a snapshot

export class Subscriber<T extends Topic> {
  /** Id of the session, "" until one is joined. */
  session = "";
  /** Messages of a topic that were published since this subscriber joined and never arrived. */
  readonly gaps: Record<string, number> = {};
  /** Messages that could not be read. */
  garbage = 0;

  private readonly sub: zmq.Subscriber;
  private dealer: zmq.Dealer | null = null;
  private readonly snapshots: string;
  private readonly options: Record<string, unknown>;
  private readonly id = randomUUID();
  private readonly joined: string[];
  private asks = 0;
  private newest: Record<string, number> = {}; // seq of each topic
  private floor: Record<string, number> | null = {}; // the same before something was missed, null while nothing is
  private seen = new Set<string>(); // what came since
  private backlog: Received[] = [];

  /**
   * @param endpoint of the publisher: tcp://host:port or ipc://path
   * @param topics what to receive
   * @param keys folder of this client, made by `streamdec keys`, where the feed is encrypted
   */
  constructor(endpoint: string, private readonly topics: readonly T[], keys?: string) {
    const [results, snapshots, images] = neighbours(endpoint);
    this.snapshots = snapshots;
    this.options = { ipv6: endpoint.includes("://["), tcpKeepalive: 1, maxMessageSize: 64 << 20, ...curve(keys) };
    this.joined = [...new Set<string>([...topics, "session"])]; // the end of a session ends iteration
    this.sub = new zmq.Subscriber({ ...this.options, receiveTimeout: SILENCE });
    this.sub.subscribe(...this.joined, `hello/${this.id}`);
    this.sub.connect(results);
    this.sub.receiveHighWaterMark = 16; // from here on: of the images
    this.sub.connect(images);
  }

  /** Iterates until the session ends; iterating again goes on with the next. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Received<Extract<Message, { topic: T }>>> {
    for (;;) {
      if (this.floor !== null) {
        await this.snapshot();
        continue;
      }
      const one = this.backlog.shift();
      if (one === undefined) {
        const frames = await receive(this.sub);
        if (frames !== null) this.take(frames);
        else await this.probe();
        continue;
      }
      if (this.wanted(one)) yield one;
      if (one.message.topic === "session" && one.message.state === "ended") return;
    }
  }

  close(): void {
    this.sub.close();
    this.dealer?.close();
  }

  private wanted(one: Received): one is Received<Extract<Message, { topic: T }>> {
    return (this.topics as readonly string[]).includes(one.message.topic);
  }

  /** Take in a published message: into the backlog, each once, with what is missing before it counted. */
  private take([topic, header, ...payloads]: Buffer[]): void {
    const message = this.read(topic, header);
    if (message === null || message.topic === "end") return;
    if (message.session !== this.session) this.join(message.session);
    const last = this.newest[message.topic] ?? message.seq - 1;
    if (message.seq <= last) return;
    this.count(message.topic, message.seq - last - 1);
    this.newest[message.topic] = message.seq;
    if (this.floor !== null) this.seen.add(`${message.topic} ${message.seq}`);
    this.backlog.push({ message, payloads, fresh: true });
    if (this.backlog.length > MOST) throw new Error("messages come, but no snapshot: open all three ports of the feed");
  }

  /** Ask for the last of each kind, and put in front what did not come otherwise. */
  private async snapshot(): Promise<void> {
    const answer = await this.ask(this.joined);
    if (answer === null || answer.kept.length !== answer.end.messages) return;
    this.settle(answer.end);
    const floor = this.floor ?? {};
    const kept = answer.kept.filter(
      ({ message: { topic, seq } }) => seq > (floor[topic] ?? 0) && !this.seen.has(`${topic} ${seq}`),
    );
    this.backlog.unshift(...kept);
    this.floor = null;
    this.seen.clear();
  }

  /** After a silence: was a message missed, or is there another session? */
  private async probe(): Promise<void> {
    const answer = await this.ask([]);
    if (answer !== null) this.settle(answer.end);
  }

  /** An answer, whole and newer than the subscription; null where there is none yet. */
  private async ask(topics: string[]): Promise<{ end: SnapshotEnd; kept: Received[] } | null> {
    this.dealer ??= this.dial();
    const request = `${this.id}-${this.asks++}`;
    const kept: Received[] = [];
    try {
      await this.dealer.send(["snapshot", request, ...topics]);
      for (;;) {
        const [topic, header, ...payloads] = (await this.dealer.receive()) as Buffer[];
        const message = this.read(topic, header);
        if (message?.topic === "end" && message.request !== request) kept.length = 0; // answers to an earlier question
        else if (message?.topic === "end") return (await this.hellos(request)) ? { end: message, kept } : null;
        else if (message !== null) kept.push({ message, payloads, fresh: false });
      }
    } catch (error) {
      if (!timedOut(error)) throw error;
      this.dealer.close(); // nobody is there: what was asked must not wait for somebody to come
      this.dealer = null;
      return null;
    }
  }

  /** Read what was published up to the hello of each lane; false where the subscription came too late for one. */
  private async hellos(request: string): Promise<boolean> {
    const until = Date.now() + PATIENCE;
    this.sub.receiveTimeout = 100;
    try {
      for (let lanes = 0; lanes < LANES; ) {
        const frames = await receive(this.sub);
        if (frames === null || Date.now() > until) return false;
        if (frames[0]?.toString() === `hello/${request}`) lanes++;
        else this.take(frames);
      }
      return true;
    } finally {
      this.sub.receiveTimeout = SILENCE;
    }
  }

  /** All that was published up to `end` has been taken in, or was missed. */
  private settle(end: SnapshotEnd): void {
    if (end.session !== this.session) this.join(end.session);
    for (const topic of this.joined) {
      const seq = end.seqs[topic] ?? 0;
      const last = (this.newest[topic] ??= seq);
      this.count(topic, seq - last);
      this.newest[topic] = Math.max(last, seq);
    }
  }

  private count(topic: string, missed: number): void {
    if (missed <= 0) return;
    this.gaps[topic] = (this.gaps[topic] ?? 0) + missed;
    this.floor ??= { ...this.newest };
  }

  /** Begin anew with a session of which nothing is known. */
  private join(session: string): void {
    this.session = session;
    this.newest = {};
    this.floor = {};
    this.seen.clear();
    this.backlog = [];
  }

  /** A header; null for a hello to an earlier question, and for what is none. */
  private read(topic: Buffer | undefined, header: Buffer | undefined): Message | SnapshotEnd | null {
    if (topic === undefined || header === undefined) return null;
    let message: (Message | SnapshotEnd) | null;
    try {
      message = (header[0] === 0x7b ? JSON.parse(header.toString()) : decode(header)) as typeof message;
    } catch {
      message = null;
    }
    if (message !== null && message.version > VERSION)
      throw new Error(`the feed has version ${message.version}, these types ${VERSION}`);
    if (message?.topic === topic.toString() && typeof message.session === "string") return message;
    this.garbage++;
    return null;
  }

  private dial(): zmq.Dealer {
    const waits = { immediate: true, linger: 0, receiveTimeout: PATIENCE, sendTimeout: PATIENCE };
    const dealer = new zmq.Dealer({ ...this.options, ...waits });
    dealer.connect(this.snapshots);
    return dealer;
  }
}

async function receive(sub: zmq.Subscriber): Promise<Buffer[] | null> {
  try {
    return (await sub.receive()) as Buffer[];
  } catch (error) {
    if (!timedOut(error)) throw error;
    return null;
  }
}

function timedOut(error: unknown): boolean {
  return (error as NodeJS.ErrnoException).code === "EAGAIN";
}

/** Endpoints of results, snapshots and images. */
function neighbours(endpoint: string): [string, string, string] {
  if (endpoint.startsWith("ipc://")) return [endpoint, `${endpoint}.snapshot`, `${endpoint}.images`];
  const [, base, port] = /^(tcp:\/\/.+:)(\d+)$/.exec(endpoint) ?? [];
  if (base === undefined || port === undefined) throw new Error(`${endpoint} is neither tcp://host:port nor ipc://path`);
  return [endpoint, `${base}${Number(port) + 1}`, `${base}${Number(port) + 2}`];
}

function curve(folder?: string): Record<string, string> {
  if (folder === undefined) return {};
  const key = (name: string) => readFileSync(join(folder, name), "utf8").trim();
  return { curveServerKey: key("feed.key"), curvePublicKey: key("client.key"), curveSecretKey: key("client.secret") };
}
