// The one channel of this tab: a WebSocket that says what the worker does, and a store of the latest word.
window.inkstone.live = (() => {
  const { at, request } = window.inkstone;
  const store = {
    connected: false, worker: null, running: [], queued: 0, downloads: [], models: null, // as the server says
    job: null, pictures: [], // of the latest job that made any
    previews: new Map(), // job -> blob URL
    failure: null, notice: null, notes: [], // notes: what was done in another way than asked
  };
  const watchers = new Set();
  const tell = (what, detail) => watchers.forEach((watcher) => watcher(what, detail));
  let seq = null;

  const add = (picture) => {
    if (picture.job !== store.job) { store.job = picture.job; store.pictures = []; }
    if (store.pictures.some((known) => known.id === picture.id)) return;
    store.pictures.push(picture);
    store.pictures.sort((a, b) => a.unit - b.unit);
  };
  const forget = (job) => {
    URL.revokeObjectURL(store.previews.get(job));
    store.previews.delete(job);
  };

  const events = {
    started(job) { store.notice = null; store.notes = []; if (store.failure?.job !== job) store.failure = null; },
    picture(job, data) { store.notice = null; add(data); },
    failed(job, data) { store.failure = { job, message: data.message }; },
    note(job, data) { store.notes = [...store.notes, data.text]; },
    interrupted(job, data) { store.notice = data.message; },
  };
  const messages = {
    async hello(message) {
      store.job = null;
      store.pictures = [];
      message.pictures.forEach(add);
      const [last] = await request("GET", at("/api/v1/jobs?limit=1")).catch(() => []);
      store.failure = last?.state === "failed" ? { job: last.id, message: last.message } : store.failure;
      tell("hello");
    },
    event({ event: { type, job, data } }) {
      events[type]?.(job, data);
      if (["done", "failed", "cancelled"].includes(type)) forget(job);
      tell(type, data);
    },
    state({ worker, running, queued, downloads, models }) {
      Object.assign(store, { worker, running, queued, downloads, models });
      if (worker.state === "ready" && running.some((job) => job.step > 1)) store.notice = null;
      tell("state");
    },
  };

  const preview = (frame) => {
    const job = new DataView(frame).getUint32(0);
    forget(job);
    store.previews.set(job, URL.createObjectURL(new Blob([new Uint8Array(frame, 4)], { type: "image/jpeg" })));
    tell("preview", job);
  };

  let pause = 500;
  const connect = () => {
    const address = new URL(at("/api/v1/live"), location.href);
    address.protocol = address.protocol.replace("http", "ws");
    if (seq !== null) address.searchParams.set("since", seq);
    const socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => {
      if (typeof data !== "string") return preview(data);
      const message = JSON.parse(data);
      if (message.seq !== undefined) seq = message.seq;
      messages[message.type]?.(message);
    };
    socket.onopen = () => { pause = 500; store.connected = true; tell("state"); };
    socket.onclose = () => {
      store.connected = false;
      tell("state");
      setTimeout(connect, pause);
      pause = Math.min(pause * 2, 5000);
    };
  };
  connect();

  return { store, tell, watch: (watcher) => { watchers.add(watcher); watcher("state"); } };
})();
