// Generated from streamdec/feed/schema.py by tools/make_feed_docs.py.

/** A stimulus came on. */
export interface Onset {
  /** kind of the message, the same as the topic frame. */
  topic: "onset";
  /** version of this schema. */
  version: number;
  /** id of the session; another one means that the publisher was started anew. */
  session: string;
  /** number of this message among those of its topic in this session, from 1, so that a gap shows. */
  seq: number;
  /** stimulus key. */
  key: string;
  /** the marker as received. */
  text: string;
  /** LSL clock. */
  onset_time: number;
}

/** The gallery images that match the response best: one decision. */
export interface Retrieval {
  /** kind of the message, the same as the topic frame. */
  topic: "retrieval";
  /** version of this schema. */
  version: number;
  /** id of the session; another one means that the publisher was started anew. */
  session: string;
  /** number of this message among those of its topic in this session, from 1, so that a gap shows. */
  seq: number;
  /** stimulus key. */
  key: string;
  /** LSL clock. */
  onset_time: number;
  /** s; the onset minus the time of the sample it was put on. */
  residual: number;
  /** s after the onset, up to which samples were used. */
  horizon: number;
  /** this is the last horizon. */
  final: boolean;
  /** presentations of `key` behind the evidence, this one included. */
  repetitions: number;
  /** the best of the gallery, best first. */
  candidates: Array<Candidate>;
  /** number of candidates that were compared. */
  gallery_size: number;
  /** place of `key` itself, from 1; null where it is not in the gallery. */
  rank: number | null;
  /** the stopping rule is met: more repetitions are not needed. */
  stop: boolean;
  /** channels that were filled in from their neighbours. */
  interpolated_channels: Array<string>;
  /** missing samples that were filled in. */
  interpolated_samples: number;
  /** what else to know, such as "settling" (filters had just restarted) or "catch_up" (after a stall). */
  flags: Array<string>;
  /** what the binary frames hold. */
  payloads: Array<Payload>;
  /** when each stage was done. */
  timing: Timing;
}

/** A sentence that says what is seen. */
export interface Caption {
  /** kind of the message, the same as the topic frame. */
  topic: "caption";
  /** version of this schema. */
  version: number;
  /** id of the session; another one means that the publisher was started anew. */
  session: string;
  /** number of this message among those of its topic in this session, from 1, so that a gap shows. */
  seq: number;
  /** stimulus key. */
  key: string;
  /** LSL clock. */
  onset_time: number;
  /** presentations of `key` behind the evidence. */
  repetitions: number;
  /** what made it: "bank" or "llm"; "nearest", "latent" or "diffusion". */
  tier: string;
  /** tokens or diffusion steps that were done; 1 for tiers of one pass. */
  units: number;
  /** units there would have been with more time. */
  wanted: number;
  /** what there is so far: another message follows that ends the request. */
  partial: boolean;
  /** name of the worker that made it, "" for the dispatcher. */
  worker: string;
  /** of it, where its tier has one. */
  probability: number | null;
  /** when each stage was done. */
  timing: GenerationTiming;
  /** one line. */
  text: string;
}

/** A picture of what is seen. */
export interface Reconstruction {
  /** kind of the message, the same as the topic frame. */
  topic: "reconstruction";
  /** version of this schema. */
  version: number;
  /** id of the session; another one means that the publisher was started anew. */
  session: string;
  /** number of this message among those of its topic in this session, from 1, so that a gap shows. */
  seq: number;
  /** stimulus key. */
  key: string;
  /** LSL clock. */
  onset_time: number;
  /** presentations of `key` behind the evidence. */
  repetitions: number;
  /** what made it: "bank" or "llm"; "nearest", "latent" or "diffusion". */
  tier: string;
  /** tokens or diffusion steps that were done; 1 for tiers of one pass. */
  units: number;
  /** units there would have been with more time. */
  wanted: number;
  /** what there is so far: another message follows that ends the request. */
  partial: boolean;
  /** name of the worker that made it, "" for the dispatcher. */
  worker: string;
  /** of it, where its tier has one. */
  probability: number | null;
  /** when each stage was done. */
  timing: GenerationTiming;
  /** id of the gallery image it is, "" for a picture that was made. */
  source: string;
  /** the picture; none where the gallery has no picture of `source`. */
  payloads: Array<Payload>;
}

/** The one end of an onset. */
export interface Epoch {
  /** kind of the message, the same as the topic frame. */
  topic: "epoch";
  /** version of this schema. */
  version: number;
  /** id of the session; another one means that the publisher was started anew. */
  session: string;
  /** number of this message among those of its topic in this session, from 1, so that a gap shows. */
  seq: number;
  /** stimulus key. */
  key: string;
  /** LSL clock. */
  onset_time: number;
  /** `decided`, or how it ended without a decision. */
  outcome: "cancelled" | "decided" | "late" | "lost_data" | "rejected";
  /** why there is no decision, in words. */
  reason: string;
}

/** Something that came in, or was asked for, and led to nothing. */
export interface Dropped {
  /** kind of the message, the same as the topic frame. */
  topic: "dropped";
  /** version of this schema. */
  version: number;
  /** id of the session; another one means that the publisher was started anew. */
  session: string;
  /** number of this message among those of its topic in this session, from 1, so that a gap shows. */
  seq: number;
  /** what it was; `caption` or `reconstruction`: what it was to be. */
  what: "caption" | "marker" | "reconstruction" | "record";
  /** of it, as received. */
  text: string;
  /** why it was dropped. */
  reason: string;
  /** stimulus key of a caption or reconstruction. */
  key: string;
  /** LSL clock; of the stimulus, likewise; else null. */
  onset_time: number | null;
}

/** The session or one of its streams changed state. */
export interface Session {
  /** kind of the message, the same as the topic frame. */
  topic: "session";
  /** version of this schema. */
  version: number;
  /** id of the session; another one means that the publisher was started anew. */
  session: string;
  /** number of this message among those of its topic in this session, from 1, so that a gap shows. */
  seq: number;
  /** what happened. */
  state: "connected" | "ended" | "found" | "gap" | "lost" | "refused" | "resumed" | "stalled" | "started" | "unrecorded" | "warning";
  /** LSL clock. */
  time: number;
  /** the stream it happened to, "" for the session itself or a worker. */
  stream: "" | "eeg" | "markers";
  /** the worker it happened to, "" where it is none. */
  worker: string;
  /** why, in words. */
  reason: string;
  /** name of the bundle; with `started`. */
  bundle: string;
  /** method of the bundle; with `started`. */
  method: string;
  /** the EEG stream, where it was just connected. */
  eeg: StreamInfo | null;
  /** the marker stream, where it was just connected. */
  markers: StreamInfo | null;
  /** the EEG comes from a simulated subject. */
  simulated: boolean;
  /** s; latency promised for each kind of result; with `started`. */
  budgets: Record<string, number>;
  /** the account so far. */
  counts: Counts | null;
}

/** Once a second: the account, latencies by stage, the clock, the machine. */
export interface Stats {
  /** kind of the message, the same as the topic frame. */
  topic: "stats";
  /** version of this schema. */
  version: number;
  /** id of the session; another one means that the publisher was started anew. */
  session: string;
  /** number of this message among those of its topic in this session, from 1, so that a gap shows. */
  seq: number;
  /** LSL clock. */
  time: number;
  /** the account so far. */
  counts: Counts;
  /** latency by stage of a retrieval; "turn" is any turn of the loop, in which it is away from the streams. */
  latency: Record<string, Quantiles>;
  /** Hz; the EEG's rate by regression. */
  sfreq_effective: number;
  /** s; LSL clock minus the clock of the EEG's sender. */
  clock_offset: number;
  /** s; spread of the EEG's raw stamps around their line. */
  clock_jitter: number;
  /** drift of the sender's clock against the LSL clock, parts per million. */
  drift_ppm: number;
  /** bytes; resident memory of the process. */
  memory: number;
  /** account by kind, "caption" and "reconstruction", of what is generated. */
  generation: Record<string, Generation>;
  /** state by worker: "starting", "ready", "lost" (it may come back) or "failed". */
  workers: Record<string, string>;
  /** decisions later than their budget. */
  missed: number;
}

/** The gallery's card, at the start and whenever candidates are added or removed. */
export interface Gallery {
  /** kind of the message, the same as the topic frame. */
  topic: "gallery";
  /** version of this schema. */
  version: number;
  /** id of the session; another one means that the publisher was started anew. */
  session: string;
  /** number of this message among those of its topic in this session, from 1, so that a gap shows. */
  seq: number;
  /** what a candidate is: one stimulus, or the centre of a class. */
  kind: string;
  /** the candidates. */
  entries: Array<GalleryEntry>;
  /** what the binary frames hold. */
  payloads: Array<Payload>;
}

/** Ten times a second, while somebody subscribes to it: the EEG behind the bundle's filters, to look at. It is decimated by block averages. It is not recorded: the recording has what the amplifier sent. */
export interface Signal {
  /** kind of the message, the same as the topic frame. */
  topic: "signal";
  /** version of this schema. */
  version: number;
  /** id of the session; another one means that the publisher was started anew. */
  session: string;
  /** number of this message among those of its topic in this session, from 1, so that a gap shows. */
  seq: number;
  /** LSL clock; middle of the first block. */
  time: number;
  /** Hz; blocks per second. */
  sfreq: number;
  /** channels, in the array's order. */
  ch_names: Array<string>;
  /** why a channel is not usable, by name: "nan", "flat", "railed", "noisy"; "missing" is not in the stream. */
  bad: Record<string, string>;
  /** array (n_chans, n_times) float32, microvolt; NaN where samples are missing. */
  payloads: Array<Payload>;
}

/** The last message of a snapshot. It never comes on the results or images socket. */
export interface SnapshotEnd {
  /** kind of the message, the same as the topic frame. */
  topic: "end";
  /** version of this schema. */
  version: number;
  /** id of the session; another one means that the publisher was started anew. */
  session: string;
  /** number of this message among those of its topic in this session, from 1, so that a gap shows. */
  seq: number;
  /** id of the request that is answered. */
  request: string;
  /** number of messages the snapshot had before this one. */
  messages: number;
  /** the newest `seq` of each topic when the snapshot was taken. */
  seqs: Record<string, number>;
}

/** One gallery entry in a decision. */
export interface Candidate {
  /** id of the entry. */
  id: string;
  /** what it shows, in words. */
  label: string;
  /** cosine with the evidence. */
  score: number;
  /** calibrated, over the whole gallery. */
  probability: number;
}

/** One binary frame after the header: its place, what it is, and how to read it. */
export interface Payload {
  /** place among the payload frames, from 0. */
  frame: number;
  /** what it holds: an array (`embedding`, `signal`) or an encoded picture (`image`). */
  kind: "embedding" | "image" | "signal";
  /** of an array: little-endian numpy code, such as "<f4". */
  dtype: string;
  /** of an array: its shape, in C order. */
  shape: Array<number>;
  /** of an image: its media type, such as "image/png". */
  media: string;
  /** what it belongs to: an image id or a stimulus key. */
  id: string;
}

/** When each stage of one result was done. The only fields that differ when a session is replayed. */
export interface Timing {
  /** LSL clock; the epoch's last sample was due. */
  due: number;
  /** LSL clock; the packet that completed the epoch was pulled. */
  arrival: number;
  /** LSL clock; the epoch was cut and cleaned. */
  ready: number;
  /** LSL clock; the encoder was done. */
  encoded: number;
  /** LSL clock; the candidates were ranked. */
  retrieved: number;
  /** LSL clock; just before the message went out. */
  published: number;
  /** s; `published` - `due`. */
  latency: number;
  /** s; the latency that was promised. */
  budget: number;
  /** `latency` <= `budget`. */
  deadline_met: boolean;
}

/** When each stage of one generated result was done. */
export interface GenerationTiming {
  /** LSL clock; the epoch's last sample was due. */
  due: number;
  /** LSL clock; it was asked for, its decision just having been published. */
  requested: number;
  /** LSL clock; its tier began. */
  started: number;
  /** LSL clock; its tier was done. */
  finished: number;
  /** LSL clock; just before the message went out. */
  published: number;
  /** s; `published` - `due`. */
  latency: number;
  /** s; the latency that was promised. */
  budget: number;
  /** `latency` <= `budget`. */
  deadline_met: boolean;
}

/** The account of a session. `markers` = `ignored` + `duplicate` + `garbage` + `onsets`; `onsets` = `decided` + `rejected` + `lost_data` + `late` + `cancelled` + `open`. */
export interface Counts {
  /** markers received. */
  markers: number;
  /** markers that are no stimulus, by config. */
  ignored: number;
  /** markers that had come before. */
  duplicate: number;
  /** markers that could not be read. */
  garbage: number;
  /** markers that began an epoch. */
  onsets: number;
  /** onsets that ended in a decision. */
  decided: number;
  /** onsets with too many channels bad or missing, or that the encoder could not take. */
  rejected: number;
  /** onsets whose samples never came. */
  lost_data: number;
  /** onsets whose samples had left the ring buffer. */
  late: number;
  /** onsets still open when the session ended. */
  cancelled: number;
  /** onsets that wait for their samples. */
  open: number;
  /** EEG samples received, per channel. */
  samples: number;
  /** EEG samples lost in gaps, per channel. */
  missing_samples: number;
  /** gaps in the EEG. */
  gaps: number;
  /** unbroken pieces of the EEG's clock. */
  segments: number;
  /** records that the recorder could not take. */
  unrecorded: number;
  /** markers that never came: holes in the `seq` of JSON markers. */
  lost_markers: number;
}

/** The account of one kind of generated result. `requests` = the sum of `answered` + `dropped` + `open`. */
export interface Generation {
  /** results asked for. */
  requests: number;
  /** results by tier. */
  answered: Record<string, number>;
  /** requests that ended without a result. */
  dropped: number;
  /** of these, requests that newer evidence on the same stimulus replaced. */
  superseded: number;
  /** results within their budget. */
  met: number;
  /** requests without an end yet. */
  open: number;
}

/** Latency of one stage. */
export interface Quantiles {
  /** number of results. */
  n: number;
  /** s; median. */
  p50: number;
  /** s; 95th percentile. */
  p95: number;
  /** s; 99th percentile. */
  p99: number;
  /** s; the longest. */
  max: number;
}

/** What a stream says of itself. */
export interface StreamInfo {
  /** name of the stream. */
  name: string;
  /** LSL type, such as "EEG" or "Markers". */
  type: string;
  /** number of channels. */
  n_chans: number;
  /** Hz; nominal rate, 0 for an irregular stream. */
  sfreq: number;
  /** format of its samples, as LSL names it. */
  dtype: string;
  /** id that stays when the source restarts, "" without one. */
  source_id: string;
  /** id of this run of the source. */
  uid: string;
  /** machine of the source. */
  hostname: string;
  /** one label per channel, "" where the header says nothing. */
  ch_names: Array<string>;
  /** one type per channel, "" where the header says nothing. */
  ch_types: Array<string>;
  /** one unit per channel, "" where the header says nothing. */
  units: Array<string>;
  /** XML header, verbatim. */
  header: string;
}

/** One candidate of the gallery. */
export interface GalleryEntry {
  /** id of the candidate, as in a decision. */
  id: string;
  /** what it shows, in words. */
  label: string;
  /** payload frame of its picture, null without one. */
  thumbnail: number | null;
}

/** What is published. */
export type Message = Onset | Retrieval | Caption | Reconstruction | Epoch | Dropped | Session | Stats | Gallery | Signal;

/** The newest version of the feed that these types know. */
export const VERSION = 1;
