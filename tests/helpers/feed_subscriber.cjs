// A subscriber in another language, of a feed with JSON headers: node feed_subscriber.cjs RESULTS SNAPSHOT IMAGES
// It joins by snapshot, then prints a line for each message, its payloads in base64, until the session has ended.
const zmq = require("zeromq");

const topics = ["onset", "retrieval", "epoch", "dropped", "session", "stats", "gallery"];
const id = require("crypto").randomUUID();

async function main([results, snapshot, images]) {
  const sub = new zmq.Subscriber({ receiveHighWaterMark: 1000 });
  sub.subscribe(...topics, `hello/${id}`);
  sub.connect(results);
  sub.connect(images);
  const dealer = new zmq.Dealer({ receiveTimeout: 1000 });
  dealer.connect(snapshot);

  const seqs = {};
  const print = ([topic, header, ...payloads]) => {
    const message = JSON.parse(header);
    console.log(JSON.stringify({ message, payloads: payloads.map((frame) => frame.toString("base64")) }));
    return message;
  };

  // A hello on both lanes proves that the subscription was there before the snapshot was taken; else ask again.
  const waiting = [];
  let hellos = new Map();
  const live = (async () => {
    for await (const frames of sub) {
      const topic = frames[0].toString();
      if (topic.startsWith("hello/")) hellos.set(topic, (hellos.get(topic) ?? 0) + 1);
      else waiting.push(frames);
      if (wake) wake();
    }
  })();
  let wake = null;
  const changed = (ms) =>
    new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      wake = () => { clearTimeout(timer); resolve(); };
    });

  for (let n = 0; ; n++) {
    const request = `${id}-${n}`;
    await dealer.send(["snapshot", request, ...topics]);
    const kept = [];
    let end = null;
    while (end === null) {
      const frames = await dealer.receive();
      if (frames[0].toString() === "end") end = JSON.parse(frames[1]);
      else kept.push(frames);
    }
    if ((hellos.get(`hello/${request}`) ?? 0) < 2) await changed(100);
    if ((hellos.get(`hello/${request}`) ?? 0) < 2) await changed(100);
    if ((hellos.get(`hello/${request}`) ?? 0) < 2 || kept.length !== end.messages) continue;
    kept.forEach(print);
    Object.assign(seqs, end.seqs);
    break;
  }
  for (;;) {
    while (waiting.length) {
      const frames = waiting.shift();
      const { topic, seq } = JSON.parse(frames[1]);
      if (seq <= (seqs[topic] ?? 0)) continue;
      seqs[topic] = seq;
      const message = print(frames);
      if (message.topic === "session" && message.state === "ended") process.exit(0);
    }
    await changed(1000);
  }
}

main(process.argv.slice(2)).catch((error) => { console.error(error); process.exit(1); });
