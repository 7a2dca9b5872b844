// Prints each message of SESSIONS sessions as a line of JSON, its payloads in base64, then what was missed:
// node print_feed.js ENDPOINT SESSIONS [FOLDER_OF_KEYS]
import { Subscriber, type Topic } from "./subscriber.js";

const topics: Topic[] = [
  "onset", "retrieval", "caption", "reconstruction", "epoch", "dropped", "session", "stats", "gallery",
];
const [endpoint = "", sessions = "1", keys] = process.argv.slice(2);
const feed = new Subscriber(endpoint, topics, keys);
for (let n = 0; n < Number(sessions); n++) {
  for await (const { message, payloads, fresh } of feed) {
    console.log(JSON.stringify({ message, fresh, payloads: payloads.map((frame) => frame.toString("base64")) }));
  }
}
console.log(JSON.stringify({ gaps: feed.gaps, garbage: feed.garbage }));
feed.close();
