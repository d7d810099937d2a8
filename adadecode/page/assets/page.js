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

  const INK = { labelColor: "currentColor", titleColor: "currentColor", labelFontSize: 11, titleFontSize: 11 };
  const CONFIG = {
    aria: false, background: "transparent", view: { stroke: null }, font: "system-ui, sans-serif",
    axis: { ...INK, titleFontWeight: "normal", domainColor: "currentColor", tickColor: "currentColor", gridColor: "currentColor", gridOpacity: 0.15 },
    axisQuantitative: { labelOverlap: "greedy", labelSeparation: 6, labelFlush: false },
    legend: { ...INK, labelLimit: 180, symbolOpacity: 1, layout: { top: { direction: "vertical", margin: 4 } } },
    range: { category: ["#3b82c4", "#c96a1f", "#2f9e6e", "#b0569b", "#7f8526", "#c4514f", "#6f74d0", "#4a8d90"], ordinal: ["#8c959f", "#7466c4", "#4a7dbd", "#2f93a3", "#23a583", "#4cb866", "#8ec63f", "#b5b021", "#c99a1a"] },
    point: { opacity: 1 },
  };
  async function draw() {
    for (const [key, spec] of Object.entries(data.charts || {})) {
      await new Promise((done) => setTimeout(done)); // so that the samples can be read meanwhile
      const compiled = vegaLite.compile({ ...spec, config: CONFIG }).spec;
      const view = new vega.View(vega.parse(compiled, null, { ast: true }), { expr: vega.expressionInterpreter, renderer: "svg", container: at("chart-" + key), logLevel: vega.Error });
      await view.runAsync();
      at("chart-" + key).firstElementChild.setAttribute("aria-hidden", "true"); // the label and the table are for who listens
    }
  }

  const HEIGHT = 48;
  let index = [], shown = [], chosen = -1, words = {};
  const cache = new Map();
  const BAD = new Set(["error", "mismatch"]), PARITY = { error: "failed", mismatch: "mismatch", near_tie: "near tie", exact: "exact" };

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
    return choose(shown.length ? 0 : -1);
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
      const meta = make("span", "meta", `${task}: ${speed(ratio)}, `);
      meta.append(make("b", BAD.has(worst) ? "bad" : "", PARITY[worst] || "not compared"), length === null ? "" : `, ${length} tokens`);
      option.append(make("span", "", id + more), meta);
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
    return show(place < 0 ? null : shown[place]);
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
    element.setAttribute("role", "group");
    element.setAttribute("aria-label", label);
    element.append(...parts);
    return element;
  }

  const nameOf = (layer) => (layer === 0 ? "n-grams or draft model" : "layer " + layer);
  const classOf = (layer) => "e" + (data.layers.indexOf(layer) % 8); // one colour for a layer in all of the page

  // Rejected drafts by the place where they begin: those of one round that follow each other stay together.
  function runs(rejected) {
    const starts = new Map();
    let run = null, last = null;
    for (const draft of rejected) {
      const follows = last && last[3] === draft[3] && last[0] + 1 === draft[0];
      if (!follows) starts.set(draft[0], (run = starts.get(draft[0]) || []));
      run.push(draft);
      last = draft;
    }
    return starts;
  }

  function struck([, id, layer, round]) {
    const element = make("del", "tok " + classOf(layer), word(id).replaceAll("\n", "\u21b5") + (data.hasWords ? "" : " "));
    element.title = `rejected: drafted at ${nameOf(layer)} in round ${round + 1}`;
    return element;
  }

  function legend(row) {
    const key = make("ul", "key");
    key.setAttribute("aria-label", "Tokens by the layer they were drafted at");
    const item = (name, className, text) => {
      const entry = make("li");
      entry.append(make(name, className, text));
      key.append(entry);
    };
    const rejected = row.rejected || [], full = row.depths[0];
    for (const layer of data.layers) {
      const kept = layer === full ? 0 : row.depths.filter((depth) => depth === layer).length;
      const lost = rejected.filter((draft) => draft[2] === layer).length;
      if (kept + lost) item("span", classOf(layer), `${nameOf(layer)}: ${kept}${row.rejected ? ` of ${kept + lost} kept` : ""}`);
    }
    item("span", "", `full model: ${row.depths.filter((depth) => depth === full).length}`);
    item("del", "", `rejected: ${row.num_drafted - row.num_accepted}`);
    if (!row.rejected) item("span", "", "which drafts were rejected is not stored");
    return key;
  }

  function output(row, sample) {
    const ids = sample.outputs[row.output], starts = runs(row.rejected || []), full = row.depths ? row.depths[0] : null;
    const parts = [];
    tokens(ids, sample.joins[row.output + 1], (element, place) => {
      const depth = row.depths ? row.depths[place] : full;
      if (depth !== full) element.classList.add(classOf(depth));
      if (row.depths) element.title = depth === full ? "the full model" : "drafted at " + nameOf(depth);
      if (place !== row.first_diff_idx) return;
      element.classList.add("diff");
      element.title = "the first token that is not vanilla's; " + element.title;
    }).forEach((element, place) => parts.push(...(starts.get(place) || []).map(struck), element));
    const past = [...starts.keys()].filter((place) => place >= ids.length).sort((a, b) => a - b);
    for (const place of past) parts.push(...starts.get(place).map(struck));
    if (!parts.length) parts.push(make("span", "", "(no token)"));
    return [...(row.depths ? [legend(row)] : []), box("out", parts, `Output of ${row.method}`)];
  }

  function facts(row) {
    const told = [`${row.output_len} tokens`, `TTFT ${milli(row.ttft_s)}`, `TPOT ${milli(row.tpot_s)}`, `end to end ${milli(row.e2e_s)}`, `ended by ${row.finish_reason}`];
    if (row.num_drafted !== null) told.push(`${row.num_accepted} of ${row.num_drafted} drafts accepted`, `${row.num_rounds} rounds`);
    if (row.correct !== null) told.push(row.correct ? "correct" : "not correct");
    return make("p", "facts-line", told.join(", "));
  }

  function method(row, sample) {
    const part = make("div", "method"), title = make("h4", "", row.method);
    part.append(title);
    if (row.error_type !== null) {
      title.append(make("span", "mark", "failed"));
      part.append(make("p", "facts-line bad", `${row.error_type}: ${row.error_message || ""}`));
      return part;
    }
    if (row.parity !== null) {
      const from = row.first_diff_idx === null ? "" : ` from token ${row.first_diff_idx + 1} on`;
      title.append(make("span", row.parity === "exact" ? "mark good" : "mark", (PARITY[row.parity] || row.parity) + from));
    }
    part.append(facts(row));
    if (row.text !== null) part.append(box("", [make("span", "", row.text)], `Output text of ${row.method}`));
    part.append(...output(row, sample));
    return part;
  }

  async function show(idx) {
    const detail = at("detail");
    if (idx === null) return detail.replaceChildren(make("p", "", "No sample fits the filters."));
    const sample = (await block(Math.floor(idx / data.perBlock)))[idx % data.perBlock];
    if (chosen < 0 || shown[chosen] !== idx) return undefined; // another was chosen meanwhile
    const [task, id] = index[idx];
    const parts = [make("h3", "", `${task} / ${id}`)];
    if (sample.category) parts.push(make("p", "facts-line", `category: ${sample.category}`));
    parts.push(make("h4", "", "Prompt"), box("", tokens(sample.prompt, sample.joins[0]), "Prompt"));
    if (sample.reference !== null) parts.push(make("h4", "", "Reference"), box("", [make("span", "", sample.reference)], "Reference"));
    detail.replaceChildren(...parts, ...sample.rows.map((row) => method(row, sample)));
    detail.scrollTop = 0;
    for (const element of detail.querySelectorAll(".text")) if (element.scrollHeight > element.clientHeight) element.tabIndex = 0;
    return undefined;
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
    await filter();
  }

  await browse().catch((error) => (at("count").textContent = `The samples cannot be read: ${error}`));
  await draw();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
})();
