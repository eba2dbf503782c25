// One large picture over the page, with what was asked for it; arrow keys go to its neighbours.
window.inkstone.viewer = (() => {
  const { t, el, button, address, request, copyButton } = window.inkstone;
  let pictures = [];
  let index = 0;
  let more = async () => {};

  const image = el("img", { alt: "" });
  const infotext = el("pre", { class: "ink-infotext", tabindex: "0", "aria-label": t("infotext") });
  const position = el("span", { class: "ink-subdued" });
  const file = el("a", { class: "ink-button", target: "_blank", rel: "noopener" }, t("open_file"));
  const use = button("use_settings", () => {
    dialog.close();
    window.inkstone.useSettings(infotext.textContent);
  });
  const start = button("start_from", () => {
    dialog.close();
    window.inkstone.startFrom(pictures[index].id);
  });
  const copy = copyButton(() => infotext.textContent);
  const previous = button("previous", () => show(index - 1));
  const next = button("next", () => show(index + 1));
  const dialog = el("dialog", { class: "ink-viewer", "aria-label": t("picture") },
    el("div", { class: "ink-viewer-picture" }, image),
    el("div", { class: "ink-viewer-side" },
      el("div", { class: "ink-row" }, position, button("close", () => dialog.close())),
      infotext,
      el("div", { class: "ink-row" }, use, start, copy, file),
      el("div", { class: "ink-row ink-steps" }, previous, next)));

  const show = async (wanted) => {
    if (wanted >= pictures.length) await more();
    index = Math.max(0, Math.min(wanted, pictures.length - 1));
    const picture = pictures[index];
    image.src = address("images", picture);
    image.alt = picture.infotext?.split("\n")[0] ?? picture.id;
    image.style.setProperty("--side", `${Math.max(512, picture.width, picture.height)}px`);
    file.href = address("images", picture);
    position.textContent = picture.id;
    previous.disabled = index === 0;
    tell(picture.infotext ?? "");
    if (picture.infotext != null) return;
    const info = await request("GET", address("image-info", picture)).catch(() => ({}));
    picture.infotext = info.infotext ?? "";
    if (pictures[index] === picture) tell(picture.infotext || t("no_infotext"), picture.infotext);
  };
  const tell = (words, useful = words) => {
    infotext.textContent = words;
    use.hidden = copy.hidden = !useful;
  };

  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(index - 1);
    if (event.key === "ArrowRight") show(index + 1);
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  /** `load` fetches further pictures into the same list, when the last one has been passed. */
  const open = (list, at, load = async () => {}) => {
    if (!dialog.isConnected) document.body.append(dialog);
    [pictures, more] = [list, load];
    show(at);
    dialog.showModal();
  };
  return { open };
})();
