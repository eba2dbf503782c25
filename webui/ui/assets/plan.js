// Under the form, before Generate: what the picture will need of the memory, and about how long it will take.
window.inkstone.plan = (element) => {
  const { t, el, request, at, live, size, duration } = window.inkstone;
  const FIELDS = ["model", "width", "height", "steps", "cfg_scale", "batch_count", "batch_size", "vae", "text_encoders"];
  const words = el("p", { class: "ink-plan" });
  element.replaceChildren(words);

  let form = null;
  let asked = 0;
  const say = (sentence, trouble) => {
    words.textContent = sentence;
    words.classList.toggle("ink-trouble", trouble);
  };
  const describe = ({ plan, free_bytes: free, seconds }) => {
    if (!plan) return "";
    const parts = [t("plan_needs", { need: size(plan.need_bytes), free: size(free) })];
    if (seconds != null) parts.push(t("plan_time", { time: duration(Math.max(1, seconds)) }));
    return parts.join(" · ");
  };
  const ask = async () => {
    const query = new URLSearchParams();
    for (const name of FIELDS) {
      for (const value of [form[name] ?? []].flat()) query.append(name, value);
    }
    const number = ++asked;
    try {
      const answer = await request("GET", at(`/api/v1/plan?${query}`));
      const trouble = answer.trouble || answer.plan?.reason;
      if (number === asked) say(trouble || describe(answer), Boolean(trouble));
    } catch (error) {
      if (number === asked) say(error.message, true);
    }
  };
  let waiting = 0;
  const soon = () => {
    clearTimeout(waiting);
    if (form) waiting = setTimeout(ask, 250);
  };
  document.addEventListener("inkstone-form", ({ detail }) => { form = detail; soon(); });
  live.watch((what) => { if (what === "done" || what === "hello") soon(); });
  let ready = null; // the worker's greeting says how much memory there is
  live.watch(() => { if (ready !== live.store.worker?.state) { ready = live.store.worker?.state; soon(); } });
};
