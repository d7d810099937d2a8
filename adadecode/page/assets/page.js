"use strict";
(async () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const blocks = [...document.querySelectorAll("script.block")];
  const at = (id) => document.getElementById(id);

  // Text of models and data: never markup. What sends commands to a terminal or turns the direction is shown by its code.
  const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]/gu;
  const visible = (text) => String(text).replace(HIDDEN, (c) => `\u27e8U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}\u27e9`);
  const make = (name, className, text) => {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = visible(text);
    return element;
  };

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  const axis = { labelColor: "currentColor", titleColor: "currentColor", domainColor: "currentColor", tickColor: "currentColor", gridColor: "currentColor", gridOpacity: 0.15 };
  const config = {
    aria: false, background: "transparent", view: { stroke: null }, axis, legend: { labelColor: "currentColor", titleColor: "currentColor", labelLimit: 150 },
    font: "system-ui, sans-serif", range: { category: ["#3b82c4", "#d9772b", "#2f9e6e", "#b0569b", "#8a8f2b", "#c4514f", "#6f74d0", "#5f9ea0"] },
  };
  async function draw() {
    for (const [key, spec] of Object.entries(data.charts || {})) {
      const compiled = vegaLite.compile({ ...spec, config }).spec;
      const view = new vega.View(vega.parse(compiled, null, { ast: true }), { expr: vega.expressionInterpreter, renderer: "svg", container: at("chart-" + key), logLevel: vega.Error });
      await view.runAsync();
      at("chart-" + key).firstElementChild.setAttribute("aria-hidden", "true"); // the label and the table are for who listens
    }
  }

  const HEIGHT = 48;
  let index = [], shown = [], chosen = -1, words = {};
  const cache = new Map();

  const speed = (value) => (value === null ? "-" : value.toFixed(2) + "x");
  const milli = (value) => (value === null ? "-" : (1000 * value).toFixed(value < 0.01 ? 2 : 1) + " ms");

  function filter() {
    const [task, parity, speedup, error, order] = ["task", "parity", "speedup", "error", "order"].map((name) => at("f-" + name).value);
    shown = index.map((_, idx) => idx).filter((idx) => {
      const [of, , , , worst, ratio] = index[idx];
      return (!task || of === task) && (!parity || worst === parity) && (!error || (worst === "error") === (error === "error")) &&
        (!speedup || (ratio !== null && ratio < 1 === (speedup === "slower")));
    });
    if (order) {
      const sign = order === "slow" ? 1 : -1;
      const key = (idx) => (index[idx][5] === null ? Infinity : sign * index[idx][5]);
      shown.sort((a, b) => key(a) - key(b) || a - b);
    }
    at("count").textContent = `${shown.length} of ${index.length} samples`;
    at("list").scrollTop = 0;
    choose(shown.length ? 0 : -1);
  }

  function render() {
    const list = at("list");
    let space = list.firstElementChild;
    if (!space) {
      space = make("div", "space");
      space.setAttribute("role", "presentation");
      list.append(space);
    }
    space.style.height = shown.length * HEIGHT + "px";
    const first = Math.max(0, Math.floor(list.scrollTop / HEIGHT) - 5);
    const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / HEIGHT) + 5);
    const options = [];
    for (let place = first; place < last; place++) {
      const [task, id, turn, repeat, worst, ratio, length] = index[shown[place]];
      const option = make("div", "option");
      option.id = "option-" + place;
      option.setAttribute("role", "option");
      option.setAttribute("aria-selected", String(place === chosen));
      option.setAttribute("aria-setsize", String(shown.length));
      option.setAttribute("aria-posinset", String(place + 1));
      option.style.top = place * HEIGHT + "px";
      const more = (turn ? `, turn ${turn}` : "") + (repeat ? `, repeat ${repeat}` : "");
      option.append(make("span", "", id + more), make("span", "meta", `${task}: ${speed(ratio)}, ${worst || "not compared"}${length === null ? "" : `, ${length} tokens`}`));
      option.addEventListener("click", () => choose(place));
      options.push(option);
    }
    space.replaceChildren(...options);
    if (chosen >= first && chosen < last) list.setAttribute("aria-activedescendant", "option-" + chosen);
    else list.removeAttribute("aria-activedescendant");
  }

  function choose(place) {
    chosen = place;
    const list = at("list");
    if (place >= 0) {
      const top = place * HEIGHT;
      if (top < list.scrollTop) list.scrollTop = top;
      else if (top + HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = top + HEIGHT - list.clientHeight;
    }
    render();
    show(place < 0 ? null : shown[place]);
  }

  async function block(number) {
    if (!cache.has(number)) cache.set(number, unpack(blocks[number].textContent));
    return cache.get(number);
  }

  const word = (id) => (words[id] === undefined ? `[${id}]` : words[id]);

  function tokens(ids, joins, style) {
    const better = new Map(joins || []);
    return ids.map((id, place) => {
      const element = make("span", "tok", (better.has(place) ? better.get(place) : word(id)) + (data.hasWords ? "" : " "));
      if (style) style(element, place, id);
      return element;
    });
  }

  function box(className, parts, label) {
    const element = make("div", "text " + className);
    element.setAttribute("tabindex", "0");
    element.setAttribute("role", "group");
    element.setAttribute("aria-label", label);
    element.append(...parts);
    return element;
  }

  function output(row, sample) {
    const ids = sample.outputs[row.output], rejected = row.rejected || [];
    const layers = row.depths ? [...new Set([...row.depths, ...rejected.map((draft) => draft[2])])].sort((a, b) => a - b) : [];
    const full = row.depths ? row.depths[0] : null;
    const drafted = layers.filter((layer) => layer !== full);
    const classOf = (layer) => "e" + (drafted.indexOf(layer) % 8);
    const nameOf = (layer) => (layer === 0 ? "n-grams or draft model" : "layer " + layer);
    const wrong = new Map();
    for (const draft of rejected) {
      if (draft[1] === ids[draft[0]]) continue; // right, but past the end or rejected early
      if (!wrong.has(draft[0])) wrong.set(draft[0], []);
      wrong.get(draft[0]).push(draft);
    }
    const parts = [];
    const struck = (place) => (wrong.get(place) || []).forEach((draft) => {
      const element = make("del", "", word(draft[1]));
      element.title = `rejected: drafted at ${nameOf(draft[2])} in round ${draft[3] + 1}`;
      parts.push(element);
    });
    tokens(ids, sample.joins[row.output + 1], (element, place) => {
      const depth = row.depths ? row.depths[place] : full;
      if (depth !== full) element.classList.add(classOf(depth));
      if (place === row.first_diff_idx) element.classList.add("diff");
      if (row.depths) element.title = depth === full ? "the full model" : "drafted at " + nameOf(depth);
    }).forEach((element, place) => {
      struck(place);
      parts.push(element);
    });
    for (const place of [...wrong.keys()].filter((place) => place >= ids.length).sort((a, b) => a - b)) struck(place);
    const key = make("ul", "key");
    key.setAttribute("aria-label", "Tokens by the layer they were drafted at");
    for (const layer of drafted) {
      const item = make("li");
      item.append(make("span", classOf(layer), `${nameOf(layer)}: ${row.depths.filter((depth) => depth === layer).length}`));
      key.append(item);
    }
    if (row.depths) {
      key.append(make("li", "", `full model: ${row.depths.filter((depth) => depth === full).length}`));
      const item = make("li");
      item.append(make("del", "", `rejected: ${row.num_drafted - row.num_accepted}${row.rejected ? "" : ", which is not stored"}`));
      key.append(item);
    }
    return [...(row.depths ? [key] : []), box("out", parts, `Output of ${row.method}`)];
  }

  async function show(idx) {
    const detail = at("detail");
    if (idx === null) return detail.replaceChildren(make("p", "", "No sample fits the filters."));
    const sample = (await block(Math.floor(idx / data.perBlock)))[idx % data.perBlock];
    if (chosen < 0 || shown[chosen] !== idx) return undefined; // another was chosen meanwhile
    const [task, id] = index[idx];
    const parts = [make("h3", "", `${task} / ${id}`)];
    if (sample.category) parts.push(make("p", "facts-line", `category: ${sample.category}`));
    parts.push(make("h3", "", "Prompt"), box("", tokens(sample.prompt, sample.joins[0]), "Prompt"));
    if (sample.reference !== null) parts.push(make("h3", "", "Reference"), box("", [make("span", "", sample.reference)], "Reference"));
    for (const row of sample.rows) {
      parts.push(make("h3", "", row.method));
      if (row.error_type !== null) {
        parts.push(make("p", "facts-line bad", `failed: ${row.error_type}: ${row.error_message || ""}`));
        continue;
      }
      const facts = [`${row.output_len} tokens`, `TTFT ${milli(row.ttft_s)}`, `TPOT ${milli(row.tpot_s)}`, `end to end ${milli(row.e2e_s)}`, `ends by ${row.finish_reason}`];
      if (row.num_drafted !== null) facts.push(`${row.num_accepted} of ${row.num_drafted} drafts accepted`, `${row.num_rounds} rounds`);
      if (row.correct !== null) facts.push(row.correct ? "correct" : "not correct");
      parts.push(make("p", "facts-line", facts.join(", ")));
      if (row.parity !== null) parts.push(make("p", "facts-line " + (row.parity === "exact" ? "good" : "bad"), `parity: ${row.parity}${row.first_diff_idx === null ? "" : `, from token ${row.first_diff_idx} on`}`));
      if (row.text !== null) parts.push(box("", [make("span", "", row.text)], `Output text of ${row.method}`));
      parts.push(...output(row, sample));
    }
    detail.scrollTop = 0;
    return detail.replaceChildren(...parts);
  }

  async function browse() {
    if (!data.index) return;
    [index, words] = await Promise.all([unpack(data.index), unpack(data.words)]);
    const list = at("list");
    list.addEventListener("scroll", () => requestAnimationFrame(render));
    list.addEventListener("keydown", (event) => {
      const page = Math.floor(list.clientHeight / HEIGHT);
      const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
      if (!(event.key in moves) || !shown.length) return;
      event.preventDefault();
      choose(Math.max(0, Math.min(shown.length - 1, chosen + moves[event.key])));
    });
    for (const select of at("filters").elements) select.addEventListener("change", filter);
    at("filters").addEventListener("submit", (event) => event.preventDefault());
    filter();
  }

  await browse();
  await draw();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
})();
