// The header: our name, what the worker is doing, how many jobs wait, light or dark.
(() => {
  const { t, el, live, mark, size, switchColours } = window.inkstone;

  window.inkstone.brand = (element) => {
    const picture = new DOMParser().parseFromString(mark, "image/svg+xml").documentElement;
    element.replaceChildren(el("h1", { class: "ink-brand" }, picture, el("span", {}, "Inkstone")));
  };

  const WORDS = {
    starting: "worker_starting",
    loading: "worker_loading",
    ready: "worker_ready",
    failed: "worker_failed",
    died: "worker_died",
  };

  const describe = ({ connected, worker, running }) => {
    if (!connected || !worker) return ["offline", t(worker ? "offline" : "connecting")];
    if (worker.state === "ready" && running.length) return ["busy", t("worker_busy")];
    if (worker.state === "loading" && worker.fraction != null) {
      return ["loading", t("worker_loading_part", { ...worker, percent: Math.floor(worker.fraction * 100) })];
    }
    return [worker.state, t(WORDS[worker.state] ?? worker.state, worker)];
  };

  /** Behind the pointer: the device, its free memory, and the checkpoints that are loaded. */
  const facts = (worker) => [
    worker?.capabilities?.device_name,
    worker?.free_bytes != null ? t("free_memory", { size: size(worker.free_bytes) }) : null,
    worker?.loaded?.length ? t("loaded_models", { names: worker.loaded.join(", ") }) : null,
  ].filter(Boolean).join("\n");

  window.inkstone.status = (element, greeted) => {
    const words = el("span", { class: "ink-pill-words" });
    const pill = el("span", { class: "ink-pill", role: "status" }, el("i", { "aria-hidden": "true" }), words);
    const queue = el("span", { class: "ink-queue" });
    const colours = el("button", {
      type: "button", class: "ink-round", title: t("colours"), "aria-label": t("colours"), onclick: switchColours,
    });
    element.replaceChildren(queue, pill, colours);

    let known = "";
    live.watch(() => {
      const { worker, queued } = live.store;
      const [state, sentence] = describe(live.store);
      pill.dataset.state = state;
      pill.title = facts(worker);
      if (words.textContent !== sentence) words.textContent = sentence;
      queue.textContent = queued ? t("waiting", { n: queued }) : "";
      const choices = JSON.stringify([worker?.capabilities?.samplers, worker?.capabilities?.schedules, live.store.models]);
      if (worker?.capabilities && choices !== known) { known = choices; greeted(); }
    });
  };
})();
