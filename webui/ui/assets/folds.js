// A fold that is on says so on its closed bar: what in it is not as by default.
window.inkstone.folds = (value) => {
  const { t, el } = window.inkstone;
  const [shown, known, decides] = JSON.parse(value); // paths by fold, defaults, and by which field a part is asked for
  const PICTURES = /\.(image|mask)$/;
  const words = (path) => t(path.split(".").filter((name) => !/^\d+$/.test(name)).join("_"));
  const changed = (form, path) => {
    const now = form[path] ?? "";
    return path in known ? String(now) !== String(known[path] ?? "") : Boolean(now);
  };
  const told = (form, path) => {
    const now = form[path];
    if (PICTURES.test(path) || now === true) return words(path);
    if (typeof now === "number") return `${words(path)} ${now}`;
    return String(now).length > 24 ? words(path) : String(now);
  };
  const isOff = (form, fold) => {
    const path = fold === "hires" ? fold : `${fold}.${decides[fold]}`;
    return path in form && !form[path];
  };
  document.addEventListener("inkstone-form", ({ detail: form }) => {
    for (const [fold, paths] of Object.entries(shown)) {
      const bar = document.querySelector(`#txt2img_fold_${fold} > .label-wrap > span:first-child`);
      if (!bar) continue;
      const note = bar.querySelector(".ink-summary") ?? bar.appendChild(el("span", { class: "ink-summary" }));
      const news = isOff(form, fold) ? [] : paths.filter((path) => path !== "hires" && changed(form, path));
      const some = news.slice(0, 3).map((path) => told(form, path));
      if (news.length > 3) some.push("…");
      note.textContent = some.length ? some.join(" · ") : fold === "hires" && form.hires ? t("on") : "";
    }
  });
};
