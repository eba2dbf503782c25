// Fields that hold a picture: dropped, pasted or chosen, kept by the server, named by its id. And masks, drawn on one.
(() => {
  const { t, el, button, at } = window.inkstone;
  const source = (id) => at(`/api/v1/inputs/${encodeURIComponent(id)}`);
  const words = (id) => t(id.replace(/^txt2img_/, "").replace(/_\d+_/, "_"));

  const send = async (blob) => {
    const headers = { "Content-Type": "application/octet-stream" };
    const answer = await fetch(at("/api/v1/inputs"), { method: "POST", body: blob, headers }).catch(() => null);
    const body = await answer?.json().catch(() => null);
    if (!answer?.ok) throw new Error(body?.error?.message ?? t("request_failed"));
    return body.id;
  };

  /** Gradio lays out `element`; its id is on the block around it. */
  const idOf = (element) => element.closest("[id^=txt2img_]").id;

  window.inkstone.pictureField = (element, props) => {
    const name = words(idOf(element));
    const image = el("img", { alt: name });
    const hint = el("span", { class: "ink-subdued" }, t("drop_picture"));
    const trouble = el("p", { class: "ink-trouble", role: "alert" });
    const file = el("input", { type: "file", accept: "image/*", class: "ink-hidden", tabindex: "-1", "aria-hidden": "true" });
    const open = el("button", { type: "button", class: "ink-drop-zone", "aria-label": name, onclick: () => file.click() }, image, hint);
    const clear = button("remove", () => put(""));
    element.replaceChildren(el("div", { class: "ink-field" }, el("span", { class: "ink-label" }, name), open, el("div", { class: "ink-row" }, clear), trouble, file));

    const draw = () => {
      const id = props.value ?? "";
      image.hidden = clear.hidden = !id;
      hint.hidden = Boolean(id);
      if (id && image.dataset.id !== id) Object.assign(image, { src: source(id) }).dataset.id = id;
    };
    const put = (id) => { props.value = id; trouble.textContent = ""; draw(); };
    const take = async (blob) => {
      try {
        put(await send(blob));
      } catch (error) {
        trouble.textContent = error.message;
      }
    };
    file.addEventListener("change", () => { if (file.files[0]) take(file.files[0]); file.value = ""; });
    open.addEventListener("dragover", (event) => event.preventDefault());
    open.addEventListener("drop", async (event) => {
      event.preventDefault();
      const [dropped] = event.dataTransfer.files;
      if (dropped) return take(dropped);
      const address = event.dataTransfer.getData("text/uri-list"); // a picture of our own pages
      if (address && new URL(address).origin === location.origin) take(await (await fetch(address)).blob());
    });
    open.addEventListener("paste", (event) => { const [pasted] = event.clipboardData.files; if (pasted) take(pasted); });
    element.addEventListener("inkstone-redraw", draw);
    new MutationObserver(draw).observe(element, { childList: true });
    document.addEventListener("inkstone-form", draw);
    draw();
  };

  const INK = "#1f8f9c"; // of what is drawn on a mask; it is sent as white on black
  const paint = (context, colour) => {
    context.globalCompositeOperation = "source-in";
    context.fillStyle = colour;
    context.fillRect(0, 0, context.canvas.width, context.canvas.height);
    context.globalCompositeOperation = "source-over";
    context.fillStyle = "#000";
  };

  window.inkstone.maskField = (element, props) => {
    const id = idOf(element);
    const below = id.replace(/^txt2img_/, "").replace(/_mask$/, ".image").replace(/_(\d+)[._]/, ".$1.");
    const image = el("img", { alt: "" });
    const canvas = el("canvas", { role: "img", "aria-label": words(id) });
    const size = el("input", { type: "range", min: "1", max: "50", value: "12", "aria-label": t("brush_size") });
    const erase = el("input", { type: "checkbox" });
    const undo = button("undo", () => { const last = steps.pop(); if (last) { pen.putImageData(last, 0, 0); keep(); } });
    const clear = button("remove", () => { pen.clearRect(0, 0, canvas.width, canvas.height); steps.length = 0; props.value = ""; });
    const board = el("div", { class: "ink-mask" }, image, canvas);
    const tools = el("div", { class: "ink-row" }, size, el("label", { class: "ink-row" }, erase, t("eraser")), undo, clear);
    const whole = el("div", { class: "ink-field" }, el("span", { class: "ink-label" }, words(id), " · ", t("mask_hint")), board, tools);
    element.replaceChildren(whole);
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    const steps = [];
    let picture = null;
    let last = null;

    const begin = async (next) => {
      picture = next;
      whole.hidden = !next;
      if (!next) return;
      image.src = source(next);
      await image.decode().catch(() => null);
      [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
      steps.length = 0;
      if (props.value) restore(props.value);
    };
    const restore = async (mask) => {
      const drawn = el("img", { src: source(mask) });
      await drawn.decode().catch(() => null);
      pen.drawImage(drawn, 0, 0, canvas.width, canvas.height);
      const data = pen.getImageData(0, 0, canvas.width, canvas.height);
      for (let i = 0; i < data.data.length; i += 4) data.data[i + 3] = data.data[i];
      pen.putImageData(data, 0, 0);
      paint(pen, INK);
    };
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return [(event.clientX - box.x) * canvas.width / box.width, (event.clientY - box.y) * canvas.height / box.height];
    };
    const stroke = (event) => {
      const now = place(event);
      pen.globalCompositeOperation = erase.checked || event.buttons === 2 ? "destination-out" : "source-over";
      pen.strokeStyle = INK;
      pen.lineCap = "round";
      pen.lineWidth = Number(size.value) / 100 * Math.max(canvas.width, canvas.height);
      pen.beginPath();
      pen.moveTo(...last);
      pen.lineTo(...now);
      pen.stroke();
      last = now;
    };
    const keep = async () => {
      const flat = el("canvas", {});
      [flat.width, flat.height] = [canvas.width, canvas.height];
      const paper = flat.getContext("2d");
      paper.drawImage(canvas, 0, 0);
      paint(paper, "#fff");
      paper.globalCompositeOperation = "destination-over";
      paper.fillRect(0, 0, flat.width, flat.height);
      props.value = await send(await new Promise((done) => flat.toBlob(done, "image/png"))).catch(() => "");
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      steps.push(pen.getImageData(0, 0, canvas.width, canvas.height));
      if (steps.length > 20) steps.shift();
      last = place(event);
      stroke(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (last) for (const each of event.getCoalescedEvents?.() ?? [event]) stroke(each);
    });
    canvas.addEventListener("pointerup", () => { last = null; keep(); });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    const look = (form) => { if ((form[below] ?? "") !== (picture ?? "")) begin(form[below] || null); };
    document.addEventListener("inkstone-form", ({ detail }) => look(detail));
    whole.hidden = true;
    look(window.inkstone.lastForm ?? {});
  };
})();
