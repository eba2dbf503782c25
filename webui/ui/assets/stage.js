// The picture side of the Generate page: preview, progress, results with their infotext, failures.
(() => {
  const { t, el, button, request, at, address, duration, announce, copyButton, live, viewer } = window.inkstone;
  const { store } = live;
  const view = { selected: null, following: true }; // a picture's id, or the newest and the one being made
  const selected = () => store.pictures.find((picture) => picture.id === view.selected) ?? store.pictures.at(-1);

  window.inkstone.seed = () => selected()?.seed;

  /** On a phone the pictures may be far above the thumb. */
  window.inkstone.showStage = () => {
    if (matchMedia("(max-width: 699px)").matches) window.scrollTo({ top: 0, behavior: "smooth" });
  };

  const act = (method, path) => request(method, at("/api/v1/jobs" + path)).catch((error) => {
    store.failure = { message: error.message };
    live.tell("failed");
  });

  window.inkstone.stage = (element, wanted, chosen) => {
    window.inkstone.useSettings = wanted;
    window.inkstone.startFrom = chosen;
    const job = () => store.running[0];
    const large = el("img", { class: "ink-large", alt: "" });
    const open = el("button", {
      type: "button", class: "ink-frame", "aria-label": t("enlarge"),
      onclick: () => selected() && !following() && viewer.open(store.pictures, store.pictures.indexOf(selected())),
    }, large);
    const hint = el("p", { class: "ink-empty ink-drop" });
    const bar = el("progress", { max: "1", "aria-label": t("progress") });
    const words = el("span", { class: "ink-progress-words" });
    const skip = button("skip", () => act("POST", `/${job().job}/skip`), { id: "txt2img_skip", title: "Alt+Enter" });
    const stop = button("stop", () => act("DELETE", `/${job().job}`), { id: "txt2img_interrupt", title: "Esc" });
    const progress = el("div", { class: "ink-progress" }, bar, el("div", { class: "ink-row" }, words, skip, stop));
    const notice = el("p", { class: "ink-notice" });
    const message = el("p", {});
    const retry = button("retry", () => act("POST", `/${store.failure.job}/retry`));
    const dismiss = button("dismiss", () => { store.failure = null; draw(); });
    const failure = el("div", { class: "ink-failure", role: "alert" }, message, el("div", { class: "ink-row" }, retry, dismiss));
    const strip = el("div", { class: "ink-strip", role: "group", "aria-label": t("results") });
    const infotext = el("pre", { class: "ink-infotext" });
    const about = el("div", { class: "ink-about" }, infotext, el("div", { class: "ink-row" },
      copyButton(() => infotext.textContent), button("start_from", () => chosen(selected().id))));
    element.replaceChildren(el("div", { class: "ink-stage" }, open, hint), notice, failure, progress, strip, about);

    const following = () => job() && view.following;
    const choose = (id) => { view.selected = id; view.following = id === null; draw(); };

    const drawLarge = () => {
      const picture = following() ? null : selected();
      const preview = following() ? store.previews.get(job().job) ?? "" : "";
      const source = picture ? address("images", picture) : preview;
      if (source && large.getAttribute("src") !== source) large.src = source;
      open.hidden = !source;
      open.classList.toggle("ink-live", Boolean(preview));
      open.disabled = !picture;
      large.alt = picture ? picture.infotext?.split("\n")[0] ?? "" : t("preview");
      const size = picture ?? job();
      large.style.setProperty("--side", `${Math.max(512, size?.width ?? 0, size?.height ?? 0)}px`);
      hint.hidden = Boolean(source);
      hint.textContent = t(job() ? "preparing" : store.queued ? "waits_for_worker" : "empty_stage");
      about.hidden = !picture?.infotext;
      infotext.textContent = picture?.infotext ?? "";
    };

    const drawProgress = () => {
      const now = job();
      progress.hidden = !now;
      document.title = now ? `${Math.round(fraction(now) * 100)} % · Inkstone` : "Inkstone";
      if (!now) return;
      bar.value = fraction(now);
      const parts = [];
      if (now.total > 1) parts.push(t("picture_of", { n: Math.min(now.done + 1, now.total), total: now.total }));
      if (now.tiles > 1) parts.push(t("tile_of", { n: now.tile, total: now.tiles }));
      else parts.push(now.step ? t("step_of", { n: now.step, total: now.steps }) : t("preparing"));
      if (now.seconds_left != null) parts.push(t("time_left", { time: duration(now.seconds_left) }));
      words.textContent = parts.join(" · ");
      skip.hidden = now.total < 2;
    };
    const fraction = ({ done, total, step, steps }) => (done + (steps ? step / steps : 0)) / Math.max(total, 1);

    let tiles = ""; // what is in the strip: a state comes at every step, and a rebuilt button loses its focus and click
    const drawStrip = () => {
      const pictures = job() && job().job !== store.job ? [] : store.pictures;
      strip.hidden = (job()?.total ?? pictures.length) < 2;
      const wanted = JSON.stringify([Boolean(job()), ...pictures.map((picture) => picture.id)]);
      if (wanted !== tiles) {
        tiles = wanted;
        strip.replaceChildren(...pictures.map(tile), ...(job() ? [newest] : []));
      }
      const chosen = following() ? newest : strip.children[pictures.indexOf(selected())];
      for (const node of strip.children) node.setAttribute("aria-pressed", String(node === chosen));
    };
    const tile = (picture) => el("button", {
      type: "button", "aria-label": t("picture_seed", { n: picture.unit + 1, seed: picture.seed }),
      onclick: () => choose(picture.id),
    }, el("img", { src: address("thumbnails", picture), alt: "" }));
    const newest = el("button", {
      type: "button", class: "ink-live", "aria-label": t("preview"), onclick: () => choose(null),
    });

    const drawFailure = () => {
      const { worker } = store;
      const trouble = store.failure ?? (worker?.state === "failed" ? { message: worker.detail } : null);
      failure.hidden = !trouble;
      retry.hidden = !trouble?.job;
      dismiss.hidden = !store.failure;
      if (message.textContent !== trouble?.message) message.textContent = trouble?.message ?? "";
      const notices = [store.notice, ...store.notes].filter(Boolean).join("\n");
      notice.hidden = !notices;
      if (notice.textContent !== notices) notice.textContent = notices;
    };

    const draw = () => { drawLarge(); drawProgress(); drawStrip(); drawFailure(); };
    const said = {
      started: () => t("said_started"),
      picture: () => job() && t("said_picture", { n: job().done + 1, total: job().total }),
      done: () => t("said_done"),
      failed: () => null, // its box is an alert
      cancelled: () => t("said_cancelled"),
    };
    live.watch((what) => {
      if (what === "started" && store.running.length <= 1) Object.assign(view, { selected: null, following: true });
      if (what === "preview") return drawLarge();
      const sentence = said[what]?.();
      if (sentence) announce(sentence);
      draw();
    });
  };
})();
