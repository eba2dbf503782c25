// All pictures in outputs/, newest first: known a hundred at a time, drawn only near where one looks.
window.inkstone.gallery = (element) => {
  const { t, el, request, at, address, live, viewer } = window.inkstone;
  const GAP = 12;
  const pictures = [];
  const known = new Set();
  const tiles = new Map(); // id -> the element, of those that are drawn
  const count = el("p", { class: "ink-subdued" });
  const grid = el("div", { class: "ink-grid", role: "group", "aria-label": t("tab_gallery") });
  const empty = el("p", { class: "ink-empty ink-drop", hidden: true }, t("empty_gallery"));
  let cursor = ""; // of the next page; null: that was all
  let total = 0;
  let loading = null;
  element.replaceChildren(count, grid, empty);

  const tile = (picture) => el("button", {
    type: "button", class: "ink-tile", "aria-label": picture.infotext?.split("\n")[0] || picture.id,
    onclick: () => viewer.open(pictures, pictures.indexOf(picture), load),
  }, el("img", { src: address("thumbnails", picture), alt: "", decoding: "async" }));

  /** Where each tile of this many pixels of width lies. */
  const measure = () => {
    const width = grid.clientWidth;
    const columns = Math.max(3, Math.floor((width + GAP) / (168 + GAP)));
    return { columns, pitch: (width + GAP) / columns };
  };

  /** Ten thousand pictures are a hundred elements: those within a screen of the one that is seen. */
  const draw = () => {
    if (!grid.offsetParent) return; // another page is open
    const { columns, pitch } = measure();
    grid.style.height = `${Math.ceil(pictures.length / columns) * pitch}px`;
    const top = -grid.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor((top - innerHeight) / pitch)) * columns;
    const last = Math.max(first, Math.ceil((top + 2 * innerHeight) / pitch) * columns);
    const near = pictures.slice(first, last);
    const wanted = new Set(near.map((picture) => picture.id));
    for (const [id, node] of tiles) {
      if (wanted.has(id)) continue;
      node.firstChild.removeAttribute("src"); // else a thumbnail that nobody waits for is still fetched
      node.remove();
      tiles.delete(id);
    }
    let next = grid.firstChild; // in order, for those who go from tile to tile by keyboard
    near.forEach((picture, offset) => {
      const node = tiles.get(picture.id) ?? tile(picture);
      const place = first + offset;
      node.style.width = node.style.height = `${pitch - GAP}px`;
      node.style.left = `${(place % columns) * pitch}px`;
      node.style.top = `${Math.floor(place / columns) * pitch}px`;
      tiles.set(picture.id, node);
      if (node === next) next = next.nextSibling;
      else grid.insertBefore(node, next);
    });
    empty.hidden = pictures.length > 0 || cursor !== null;
    if (last >= pictures.length) load();
  };
  let planned = 0;
  const plan = () => { planned ||= requestAnimationFrame(() => { planned = 0; draw(); }); };

  const add = (fresh, where) => {
    const unknown = fresh.filter((picture) => !known.has(picture.id));
    unknown.forEach((picture) => known.add(picture.id));
    pictures[where](...unknown);
    count.textContent = total ? t("pictures", { n: total.toLocaleString() }) : "";
    plan();
  };
  const fetchPage = async () => {
    const page = await request("GET", at(`/api/v1/images?limit=100${cursor && `&after=${encodeURIComponent(cursor)}`}`));
    [cursor, total] = [page.next, page.total];
    add(page.images, "push");
  };
  const load = async () => {
    if (cursor === null) return;
    loading ??= fetchPage().catch((error) => { count.textContent = error.message; }).finally(() => { loading = null; });
    await loading;
  };

  window.addEventListener("scroll", plan, { passive: true });
  new ResizeObserver(plan).observe(element);
  live.watch((what, picture) => {
    if (what !== "picture" || known.has(picture.id)) return;
    total += 1;
    add([picture], "unshift");
  });
};
