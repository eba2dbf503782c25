// All model files, by kind: what each is, what is wrong with a broken one; and the downloads that bring new ones.
window.inkstone.models = (element, use) => {
  const { t, el, button, request, at, live, size, duration, announce } = window.inkstone;
  const PAGE = 100;
  const KINDS = {
    all: "kind_all", checkpoint: "kind_checkpoint", lora: "kind_lora", vae: "kind_vae", embedding: "kind_embedding",
    text_encoder: "kind_text_encoder", controlnet: "kind_controlnet", t2i_adapter: "kind_t2i_adapter",
    ip_adapter: "kind_ip_adapter", upscaler: "kind_upscaler", face_restorer: "kind_face_restorer",
    image_encoder: "kind_image_encoder", preprocessor: "kind_preprocessor",
    unknown: "kind_unknown", broken: "kind_broken",
  };
  const FAMILIES = {
    sd1: "SD 1", sd2: "SD 2", sdxl: "SDXL", sd3: "SD 3", flux: "Flux.1", flux2: "FLUX.2",
    z_image: "Z-Image", qwen_image: "Qwen-Image",
  };
  const STATES = {
    queued: "download_queued", running: "download_running", paused: "download_paused",
    done: "download_done", failed: "download_failed", cancelled: "download_cancelled",
  };
  const view = { kind: "all", search: "", shown: 0, version: null };

  // adding
  const source = el("input", { id: "models_source", class: "ink-input", placeholder: t("add_model_hint"), "aria-label": t("add_model"), spellcheck: "false", autocomplete: "off" });
  const sort = el("select", { class: "ink-input", "aria-label": t("kind") },
    el("option", { value: "" }, t("kind_auto")),
    ...Object.entries(KINDS).filter(([kind]) => !["all", "unknown", "broken"].includes(kind))
      .map(([kind, key]) => el("option", { value: kind }, t(key))));
  const sorry = el("p", { class: "ink-failure", role: "alert", hidden: true });
  const attempt = async (work) => {
    sorry.hidden = true;
    try { return await work(); } catch (error) { sorry.textContent = error.message; sorry.hidden = false; }
  };
  const add = el("form", { class: "ink-row ink-add" }, source, sort, el("button", { class: "ink-button" }, t("add")));
  add.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!source.value.trim()) return source.focus();
    attempt(async () => {
      await request("POST", at("/api/v1/downloads"), { source: source.value.trim(), kind: sort.value || null });
      source.value = "";
    });
  });

  // tokens: they go to the server and never come back
  const SITES = { huggingface: "Hugging Face", civitai: "Civitai" };
  const keys = el("details", { class: "ink-tokens" }, el("summary", {}, t("tokens")), el("p", { class: "ink-subdued" }, t("tokens_hint")));
  const drawTokens = async () => {
    const known = await attempt(() => request("GET", at("/api/v1/tokens")));
    if (!known) return;
    keys.querySelectorAll("form").forEach((node) => node.remove());
    for (const [site, name] of Object.entries(SITES)) {
      const path = at(`/api/v1/tokens/${site}`);
      const field = el("input", { class: "ink-input", type: "password", autocomplete: "off", "aria-label": t("token_of", { site: name }),
        placeholder: known[site]?.set ? t("token_set", { site: name }) : t("token_of", { site: name }) });
      const form = el("form", { class: "ink-row" }, field, el("button", { class: "ink-button" }, t("save")));
      if (known[site]?.set) form.append(button("forget", () => attempt(() => request("DELETE", path)).then(drawTokens)));
      form.addEventListener("submit", async (event) => {
        event.preventDefault();
        if (field.value) await attempt(() => request("PUT", path, { token: field.value }));
        drawTokens();
      });
      keys.append(form);
    }
  };
  keys.addEventListener("toggle", () => { if (keys.open) drawTokens(); });

  // on their way
  const downloads = el("ul", { class: "ink-downloads", "aria-label": t("downloads") });
  const act = (verb, id) => attempt(() => request(...(verb === "remove" ? ["DELETE", at(`/api/v1/downloads/${id}`)] : ["POST", at(`/api/v1/downloads/${id}/${verb}`)])));
  const VERBS = {
    queued: ["pause", "cancel"], running: ["pause", "cancel"], paused: ["resume", "cancel"],
    failed: ["resume", "remove"], done: ["remove"], cancelled: ["remove"],
  };
  const WORDS = { pause: "pause", resume: "resume", cancel: "cancel", remove: "dismiss" };
  const progressOf = ({ state, received, total, bytes_per_second: speed, seconds_left: left, message }) => [
    t(STATES[state] ?? state),
    state === "done" ? null : total ? `${size(received)} / ${size(total)}` : size(received),
    state === "running" && speed ? `${size(speed)}/s` : null,
    state === "running" && left != null ? t("time_left", { time: duration(left) }) : null,
    message,
  ].filter(Boolean).join(" · ");
  const rows = new Map(); // id -> its elements: a button that is rebuilt under the pointer loses its click
  const row = (download) => {
    const bar = el("progress", { max: "1", "aria-label": download.name });
    const words = el("span", { class: "ink-subdued ink-progress-words" });
    const buttons = el("span", { class: "ink-row" });
    const node = el("li", { class: "ink-progress" }, el("strong", {}, download.name), bar, el("div", { class: "ink-row" }, words, buttons));
    return { node, bar, words, buttons, state: null };
  };
  const drawDownloads = () => {
    const list = live.store.downloads ?? [];
    for (const [id, { node }] of rows) if (!list.some((each) => each.id === id)) { node.remove(); rows.delete(id); }
    for (const download of list) {
      const parts = rows.get(download.id) ?? row(download);
      if (!rows.has(download.id)) { rows.set(download.id, parts); downloads.append(parts.node); }
      parts.bar.hidden = download.state === "done";
      parts.bar.value = download.total ? download.received / download.total : 0;
      parts.words.textContent = progressOf(download);
      if (parts.state === download.state) continue;
      if (parts.state) announce(`${download.name}: ${t(STATES[download.state] ?? download.state)}`);
      parts.state = download.state;
      parts.buttons.replaceChildren(...(VERBS[download.state] ?? []).map((verb) => button(WORDS[verb], () => act(verb, download.id))));
    }
    downloads.hidden = !list.length;
  };

  // what is there
  const search = el("input", { class: "ink-input", type: "search", placeholder: t("search_models"), "aria-label": t("search_models") });
  const refresh = button("refresh", () => attempt(async () => { await request("POST", at("/api/v1/models/refresh")); await restart(); }), { id: "models_refresh" });
  const kinds = el("div", { class: "ink-row ink-kinds", role: "group", "aria-label": t("kind") });
  const body = el("tbody");
  const head = el("thead", {}, el("tr", {}, ...["column_name", "column_kind", "column_family", "column_size", "column_hash"].map((key) => el("th", { scope: "col" }, t(key))), el("td")));
  const table = el("table", { class: "ink-table" }, head, body);
  const empty = el("p", { class: "ink-empty ink-drop", hidden: true }, t("no_models"));
  const more = button("show_more", () => load());
  element.replaceChildren(add, keys, sorry, downloads, el("div", { class: "ink-row ink-tools" }, search, refresh), kinds, table, empty, more);

  const convert = (model, node) => attempt(async () => {
    node.disabled = true;
    try { await request("POST", at("/api/v1/models/convert"), { kind: model.kind, name: model.name }); } finally { node.disabled = false; }
    await restart();
  });
  const line = (model) => {
    const usable = model.kind === "checkpoint";
    const actions = el("div", { class: "ink-row" });
    if (usable) actions.append(button("use", () => use(model.name)));
    if (model.format === "pickle" && model.kind !== "broken") {
      const node = button("convert", () => convert(model, node), { title: t("convert_hint") });
      actions.append(node);
    }
    const family = [FAMILIES[model.family] ?? model.family, model.variant].filter(Boolean).join(" ");
    return el("tr", { class: model.kind === "broken" ? "ink-broken" : null },
      el("td", {}, el("span", { class: "ink-name", title: model.path }, model.name), model.detail ? el("p", { class: "ink-subdued" }, model.detail) : null),
      el("td", {}, t(KINDS[model.kind] ?? model.kind)),
      el("td", {}, family),
      el("td", { class: "ink-number" }, size(model.size_bytes), model.dtype ? el("span", { class: "ink-subdued" }, ` ${model.dtype}`) : null),
      el("td", { class: "ink-number ink-subdued" }, model.sha256?.slice(0, 10) ?? ""),
      el("td", {}, actions));
  };

  let asked = 0; // the answer to an older question is thrown away
  const load = () => attempt(async () => {
    const number = asked;
    const query = new URLSearchParams({ kind: view.kind, search: view.search, offset: view.shown, limit: PAGE });
    const page = await request("GET", at(`/api/v1/models?${query}`));
    if (number !== asked) return;
    body.append(...page.map(line));
    view.shown += page.length;
    more.hidden = page.length < PAGE;
    empty.hidden = view.shown > 0;
    table.hidden = view.shown === 0;
  });
  const restart = async () => {
    if (!element.offsetParent) { view.version = null; return; } // another page is open: later
    asked += 1;
    const number = asked;
    const counts = await attempt(() => request("GET", at("/api/v1/models/kinds")));
    if (number !== asked || !counts) return;
    drawKinds(counts);
    body.replaceChildren();
    view.shown = 0;
    await load();
  };
  const drawKinds = (counts) => {
    const total = Object.values(counts).reduce((sum, count) => sum + count, 0);
    if (view.kind !== "all" && !counts[view.kind]) view.kind = "all";
    kinds.replaceChildren(...Object.entries(KINDS).filter(([kind]) => kind === "all" || counts[kind]).map(([kind, key]) =>
      el("button", { type: "button", class: "ink-chip", "aria-pressed": String(kind === view.kind), onclick: () => { view.kind = kind; restart(); } },
        t(key), el("span", { class: "ink-subdued" }, ` ${(kind === "all" ? total : counts[kind]).toLocaleString()}`))));
  };

  let typing = 0;
  search.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => { view.search = search.value.trim(); restart(); }, 200);
  });
  const look = () => {
    if (!element.offsetParent || view.version === live.store.models) return;
    view.version = live.store.models;
    restart();
  };
  new ResizeObserver(look).observe(element); // the tab was opened
  live.watch((what) => { if (what === "state") { drawDownloads(); look(); } });
};
