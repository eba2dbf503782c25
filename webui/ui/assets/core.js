// What all pages share: words, elements, requests, the announcer, the colours, the keys.
Object.assign(window.inkstone, (() => {
  const { tables } = window.inkstone;
  const language = [navigator.language, navigator.language.split("-")[0], "en"].find((tag) => tags(tag));
  function tags(tag) { return Object.hasOwn(tables, tag); }

  /** The words of a key; `{name}` in them is replaced by values.name. */
  const t = (key, values = {}) =>
    (tables[language][key] ?? tables.en[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");

  /** An element. Text goes in as text: what strangers wrote can never become markup. */
  const el = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value === true) node.setAttribute(name, "");
      else if (value !== false && value != null) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child != null));
    return node;
  };
  const button = (key, onclick, attributes = {}) =>
    el("button", { type: "button", class: "ink-button", onclick, ...attributes }, t(key));

  /** Our own path, also behind a proxy that serves us below a prefix. */
  const at = (path) => new URL(window.gradio_config?.root ?? "/", location.href).pathname.replace(/\/$/, "") + path;

  /** Names of files are anything: each part of a picture's id is encoded. `kind`: images, thumbnails, image-info. */
  const address = (kind, picture) => at(`/api/v1/${kind}/${picture.id.split("/").map(encodeURIComponent).join("/")}`);

  const request = async (method, path, sent) => {
    const json = sent && { body: JSON.stringify(sent), headers: { "Content-Type": "application/json" } };
    const answer = await fetch(path, { method, ...json }).catch(() => null);
    const body = await answer?.json().catch(() => null);
    if (!answer?.ok) throw new Error(body?.error?.message ?? t("request_failed"));
    return body;
  };

  const duration = (seconds) => {
    const whole = Math.max(0, Math.round(seconds));
    return whole < 60 ? t("seconds", { s: whole }) : t("minutes", { m: Math.floor(whole / 60), s: whole % 60 });
  };

  /** Bytes for people, as disks and cards are sold: 6.9 GB. */
  const size = (bytes) => {
    const [unit, name] = [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]].find(([each]) => bytes >= each * 0.95) ?? [1, "B"];
    return `${(bytes / unit).toFixed(bytes / unit < 9.95 && unit > 1 ? 1 : 0)} ${name}`;
  };

  /** Tell those who do not see the screen. */
  const region = el("div", { class: "ink-hidden", role: "status", "aria-live": "polite" });
  const announce = (words) => { if (region.textContent !== words) region.textContent = words; };

  const copy = async (words) => {
    if (navigator.clipboard) return navigator.clipboard.writeText(words);
    const area = el("textarea", { class: "ink-hidden" }); // over http from another device there is no clipboard API
    area.value = words;
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  };
  const copyButton = (words) => {
    const node = button("copy", async () => {
      await copy(words());
      node.textContent = t("copied");
      announce(t("copied"));
      setTimeout(() => { node.textContent = t("copy"); }, 1500);
    });
    return node;
  };

  // Colours follow the system until the user chooses; Gradio sets the class by itself, so ours is set again.
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => localStorage.getItem("inkstone-colours");
  const isDark = () => (chosen() ?? (system.matches ? "dark" : "light")) === "dark";
  const paint = () => {
    if (document.body.classList.contains("dark") !== isDark()) document.body.classList.toggle("dark", isDark());
  };
  const switchColours = () => {
    localStorage.setItem("inkstone-colours", isDark() ? "light" : "dark");
    paint();
  };

  /** The form as one object for the browser's store; until the stored one has been put in, nothing is written. */
  const form = (saved, names, values) => {
    const now = Object.fromEntries(names.map((name, i) => [name, values[i]]));
    window.inkstone.lastForm = now;
    document.dispatchEvent(new CustomEvent("inkstone-form", { detail: now }));
    return window.inkstone.formIsReady ? now : saved;
  };

  const press = (id) => {
    const node = document.getElementById(id);
    if (!node || node.disabled || !node.offsetParent) return false;
    node.click();
    return true;
  };
  const keys = (event) => {
    const typing = event.target.closest?.("input, textarea, [role=listbox], dialog");
    let done = false;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) done = press("txt2img_generate");
    else if (event.key === "Enter" && event.altKey) done = press("txt2img_skip");
    else if (event.key === "Escape" && !typing) done = press("txt2img_interrupt");
    if (done) { event.preventDefault(); event.stopPropagation(); }
  };

  const begin = () => {
    document.body.append(region);
    paint();
    new MutationObserver(paint).observe(document.body, { attributeFilter: ["class"] });
    system.addEventListener("change", paint);
    document.addEventListener("keydown", keys, { capture: true });
  };
  if (document.body) begin(); else document.addEventListener("DOMContentLoaded", begin);

  return { t, el, button, at, request, address, duration, size, announce, copyButton, switchColours, form, formIsReady: false };
})());
