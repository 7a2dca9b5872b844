// Markers from a browser, through marker_bridge.py, stamped on the LSL clock.
//
//   const markers = await Markers.open();
//   requestAnimationFrame((time) => markers.mark({ id: "cat_01.jpg" }, time));   // in the frame that shows the image

export class Markers {
  #socket;
  #offset = 0; // LSL clock minus this page's clock, s
  #spread = Infinity; // round trip that #offset was measured with, s
  #seq = 0;

  // Connects, and compares the clocks: the quickest of some round trips tells the offset best.
  static async open(url = `ws://${location.host}/markers`) {
    const markers = new Markers();
    markers.#socket = new WebSocket(url);
    await new Promise((resolve, reject) => {
      markers.#socket.onopen = resolve;
      markers.#socket.onerror = () => reject(new Error(`no marker bridge at ${url}`));
    });
    for (let i = 0; i < 20; i++) await markers.#compare();
    return markers;
  }

  // `fields` with the stimulus key as `id`; `time` in ms of performance.now(), when the image came on: what
  // requestAnimationFrame hands its callback. A screen shows it a constant time later: calibrate measures that.
  mark(fields, time = performance.now()) {
    this.#seq += 1; // numbered: what is lost on the way is noticed
    const marker = { ...fields, seq: this.#seq };
    this.#socket.send(JSON.stringify({ marker, clock: time / 1000 + this.#offset }));
  }

  // How well the clocks are known, s: half a round trip.
  get uncertainty() {
    return this.#spread / 2;
  }

  #compare() {
    return new Promise((resolve) => {
      const sent = performance.now();
      this.#socket.onmessage = (message) => {
        const back = performance.now();
        const { clock } = JSON.parse(message.data);
        const spread = (back - sent) / 1000;
        if (spread < this.#spread) {
          this.#spread = spread;
          this.#offset = clock - (sent + back) / 2000;
        }
        resolve();
      };
      this.#socket.send(JSON.stringify({ ping: sent }));
    });
  }
}
