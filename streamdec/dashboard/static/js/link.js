// The one WebSocket: packets in, nothing out but the token. It comes back by itself.

const decoder = new TextDecoder();
const WRONG_TOKEN = 4401;
const KEY = "streamdec-token";

/** Split a packet: length of the header (uint32, little-endian), header (JSON), blobs of the lengths it names. */
export function unpack(buffer) {
  const size = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(decoder.decode(new Uint8Array(buffer, 4, size)));
  let at = 4 + size;
  const blobs = header.blobs.map((length) => {
    const blob = new Uint8Array(buffer, at, length);
    at += length;
    return blob;
  });
  return { header, blobs };
}

/** The numbers of a blob; they need not lie at a multiple of four bytes. */
export function floats(blob) {
  return new Float32Array(blob.buffer.slice(blob.byteOffset, blob.byteOffset + blob.byteLength));
}

export class Link {
  /**
   * @param take called with the header and the blobs of each packet
   * @param changed called with "connecting", "open", "closed" or "token" (one must be given)
   */
  constructor(take, changed) {
    this.take = take;
    this.changed = changed;
    this.tries = 0;
    const given = new URLSearchParams(location.hash.slice(1)).get("token");
    if (given) {
      this.token = given;
      history.replaceState(null, "", location.pathname);
    }
  }

  get token() {
    return sessionStorage.getItem(KEY);
  }

  set token(value) {
    sessionStorage.setItem(KEY, value);
  }

  connect() {
    this.changed("connecting");
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`);
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => {
      const { header, blobs } = unpack(data);
      if (header.topic === "hello") this.#greet(socket, header);
      else this.take(header, blobs);
    };
    socket.onclose = ({ code }) => {
      if (code === WRONG_TOKEN || this.waiting) {
        this.waiting = false;
        sessionStorage.removeItem(KEY);
        this.changed("token");
        return;
      }
      this.changed("closed");
      this.tries += 1;
      setTimeout(() => this.connect(), Math.min(5000, 250 * 2 ** Math.min(this.tries, 5)));
    };
  }

  #greet(socket, { locked }) {
    if (locked && !this.token) {
      this.waiting = true;
      socket.close();
      return;
    }
    if (locked) socket.send(this.token);
    this.tries = 0;
    this.changed("open");
  }
}
