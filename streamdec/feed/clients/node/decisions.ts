// Prints each decision of a feed: node build/decisions.js [tcp://HOST:PORT [FOLDER_OF_KEYS]]
import { Subscriber } from "./subscriber.js";

const [endpoint = "tcp://127.0.0.1:5650", keys] = process.argv.slice(2);
const feed = new Subscriber(endpoint, ["retrieval"], keys);
for await (const { message } of feed) {
  const best = message.candidates[0];
  const latency = (1000 * message.timing.latency).toFixed(1);
  console.log(`${message.key} rank ${message.rank ?? "-"}: ${best?.label} (${best?.probability.toFixed(2)}), ${latency} ms`);
}
feed.close();
