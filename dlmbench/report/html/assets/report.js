"use strict";
// Sorting, replaying traces, browsing items. Texts of models reach the page as text nodes only.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  document.documentElement.classList.add("js");

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") made.className = value;
      else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value !== false && value != null) made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  function fill(select, options, chosen) {
    select.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
    const values = options.map(([value]) => String(value));
    select.value = values.includes(String(chosen)) ? chosen : values[0];
  }

  // --- tables --------------------------------------------------------------------------------------------------------

  function compare(a, b) {
    if (a === "" || b === "") return (a === "") - (b === "");
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.v;
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => (value(a) === "" || value(b) === "" || up ? 1 : -1) * compare(value(a), value(b)));
      table.tBodies[0].append(...rows);
    }));
  }

  // --- replay --------------------------------------------------------------------------------------------------------

  const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // viridis
  function shade(share) {
    const place = share * (STOPS.length - 1), low = Math.min(Math.floor(place), STOPS.length - 2);
    return STOPS[low].map((value, i) => Math.round(value + (STOPS[low + 1][i] - value) * (place - low)));
  }
  function readable(rgb) {
    const [r, g, b] = rgb.map((v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
  }
  const word = (number) => data.words[number];
  const percent = (thousandths) => (thousandths == null ? "" : ` (${(thousandths / 10).toFixed(1)} %)`);
  const quoted = (text) => `“${text.replaceAll("\n", "↵")}”`;
  const visible = (text) => text.replaceAll("\n", "↵\n") || "∅";

  // The state of every position after each step, and the text it will end with: masks are as wide, the layout keeps still.
  function unroll(trace) {
    let length = 1;
    for (const step of trace.steps) for (const some of [step[1], step[3], step[4], step[6]]) for (const [at] of some) length = Math.max(length, at + 1);
    const final = Array(length).fill(null);
    const frames = [Array.from({ length }, () => ({}))];
    trace.steps.forEach(([, revealed, back, considered, rejected, , rewritten], number) => {
      const frame = frames[number].map((cell) => ({ text: cell.text, step: cell.step, sure: cell.sure }));
      for (const position of back) frame[position] = { back: frames[number][position].text };
      for (const [position, text, sure] of revealed) {
        frame[position] = { text, sure, step: number + 1, now: true };
        final[position] = text;
      }
      for (const [position, text] of rewritten) {
        frame[position] = { text, step: number + 1, now: true, edited: true };
        final[position] = text;
      }
      for (const [position, text, sure] of considered) {
        if (frame[position].text === undefined && frame[position].back === undefined) frame[position] = { guess: text, sure };
      }
      for (const [position, text] of rejected) {
        if (frame[position].text === undefined) frame[position].rejected = text;
        else frame[position].instead = text;
      }
      frames.push(frame);
    });
    return { frames, final, length };
  }

  function makePanel(trace, section) {
    const { frames, final, length } = unroll(trace);
    const total = trace.steps.length;
    const item = section.items.find((one) => one.key === trace.key);
    const answer = item && item.answers.find((one) => one[3].includes(trace.setting));
    const forwards = item && item.nfe[trace.setting];
    const facts = [`${total} steps`, forwards != null && `${forwards} forwards`, `${trace.end} tokens`].filter(Boolean).join(", ");
    const label = section.settings[trace.setting];
    const cells = final.map((_, position) => element("span", { class: "cell", "data-position": position }));
    const canvas = element("div", { class: "canvas", tabindex: 0, role: "group", "aria-label": `Answer of ${label}. Arrow keys move from token to token.` }, ...cells);
    const told = element("p", { class: "told", role: "status" });
    let cursor = -1, shown = 0;

    const head = element("h3", {}, label);
    if (answer) head.append(badge(answer));
    head.append(element("span", { class: "quiet" }, facts));
    const node = element("div", { class: "panel card" }, head, canvas, told);
    if (!trace.same) node.append(element("p", { class: "quiet" }, "Recorded in a batch of its own; a near tie made it differ from the scored answer."));

    function draw(step) {
      shown = Math.min(step, total);
      frames[shown].forEach((state, position) => {
        const cell = cells[position];
        cell.className = "cell";
        cell.style.background = cell.style.color = "";
        let text = final[position] == null ? "" : word(final[position]);
        if (state.text !== undefined) {
          text = word(state.text);
          const rgb = shade(total > 1 ? (state.step - 1) / (total - 1) : 0);
          cell.style.background = `rgb(${rgb})`;
          cell.style.color = readable(rgb);
          if (state.now) cell.classList.add(state.edited ? "edited" : "now");
        } else if (state.back !== undefined) {
          text = word(state.back);
          cell.classList.add("back");
        } else if (state.rejected !== undefined) {
          text = word(state.rejected);
          cell.classList.add("rejected");
        } else {
          cell.classList.add("mask");
          if (state.guess !== undefined) text = word(state.guess);
          else cell.classList.add("unknown");
        }
        if (position === cursor) cell.classList.add("here");
        cell.textContent = position < trace.end ? visible(text) : "·"; // filling behind the end
      });
      tell();
    }

    function tell() {
      told.textContent = cursor >= 0 ? describe(cursor) : stepText();
    }

    function stepText() {
      if (shown === 0) return "Before the first step: everything is masked.";
      const [, revealed, back, , rejected, passes, rewritten] = trace.steps[shown - 1];
      const parts = [`revealed ${revealed.length}`];
      if (rewritten.length) parts.push(`rewrote ${rewritten.length}`);
      if (back.length) parts.push(`took back ${back.length}`);
      if (rejected.length) parts.push(`rejected ${rejected.length}`);
      return `Step ${shown} of ${total}: ${parts.join(", ")}; ${passes}.`;
    }

    function describe(position) {
      const parts = [];
      trace.steps.slice(0, shown).forEach(([, revealed, back, considered, rejected, , rewritten], i) => {
        for (const [p, text, sure] of revealed) if (p === position) parts.push(`revealed ${quoted(word(text))} in step ${i + 1}${percent(sure)}`);
        for (const [p, text] of rewritten) if (p === position) parts.push(`rewritten as ${quoted(word(text))} in step ${i + 1}`);
        if (back.includes(position)) parts.push(`taken back in step ${i + 1}`);
        for (const [p, text] of rejected) if (p === position) parts.push(`${quoted(word(text))} rejected in step ${i + 1}`);
        if (i === shown - 1) for (const [p, text, sure] of considered) if (p === position) parts.push(`masked; now it would be ${quoted(word(text))}${percent(sure)}`);
      });
      return `Position ${position + 1}: ${parts.join("; ") || "masked"}.`;
    }

    function moveTo(position) {
      cells[cursor]?.classList.remove("here");
      cursor = position;
      cells[cursor]?.classList.add("here");
      tell();
    }

    canvas.addEventListener("keydown", (event) => {
      const moves = { ArrowRight: cursor + 1, ArrowLeft: cursor - 1, Home: 0, End: length - 1 };
      if (event.key === "Escape") moveTo(-1);
      else if (event.key in moves) moveTo(Math.max(0, Math.min(length - 1, moves[event.key])));
      else return;
      event.preventDefault();
    });
    canvas.addEventListener("pointerover", (event) => event.target.dataset.position && moveTo(Number(event.target.dataset.position)));
    canvas.addEventListener("pointerleave", () => moveTo(-1));
    canvas.addEventListener("blur", () => moveTo(-1));
    return { node, draw, total };
  }

  function badge([, right, name]) {
    const good = right === 1;
    return element("span", { class: `verdict ${good ? "right" : "wrong"}` }, `${good ? "✓" : "✗"} ${name}`);
  }

  const slider = byId("replay-step"), play = byId("replay-play");
  const choices = { section: byId("replay-section"), item: byId("replay-item"), left: byId("replay-left"), right: byId("replay-right") };
  let panels = [], timer = null;
  const tracesOf = (section) => data.traces.filter((trace) => trace.section === section);

  function stop() {
    clearInterval(timer);
    timer = null;
    play.classList.remove("playing");
    play.lastElementChild.textContent = "Play";
  }

  function draw() {
    const step = Number(slider.value);
    byId("replay-count").textContent = `Step ${step} of ${slider.max}`;
    slider.setAttribute("aria-valuetext", `Step ${step} of ${slider.max}`);
    for (const panel of panels) panel.draw(step);
  }

  function go(step) {
    slider.value = step;
    draw();
  }

  function startOrStop() {
    if (timer) return stop();
    if (Number(slider.value) >= Number(slider.max)) go(0);
    play.classList.add("playing");
    play.lastElementChild.textContent = "Pause";
    const pace = Math.max(90, Math.min(600, 9000 / Math.max(1, Number(slider.max))));
    timer = setInterval(() => {
      go(Number(slider.value) + 1);
      if (Number(slider.value) >= Number(slider.max)) stop();
    }, pace);
  }

  // What was chosen stays chosen where the new task or item has it too.
  function chooseSection(number, key, left, right) {
    const section = data.sections[number], traces = tracesOf(number);
    choices.section.value = number;
    const keys = [...new Set(traces.map((trace) => trace.key))];
    const question = (name) => section.items.find((item) => item.key === name)?.prompt ?? name;
    fill(choices.item, keys.map((name, i) => [name, `${i + 1}: ${snippet(question(name), 40)}`]), key);
    const settings = [...new Set(traces.map((trace) => trace.setting))].sort((a, b) => a - b);
    const options = settings.map((setting) => [setting, section.settings[setting]]);
    const slow = settings.findIndex((setting) => section.settings[setting].startsWith("static"));
    const fast = settings.findLast((setting) => /^threshold/.test(section.settings[setting]));
    fill(choices.left, options, left ?? fast ?? settings[0]);
    fill(choices.right, [["", "nothing"], ...options], right ?? (slow >= 0 ? settings[slow] : ""));
    chooseTraces();
  }

  function chooseTraces() {
    stop();
    const number = Number(choices.section.value), section = data.sections[number], key = choices.item.value;
    const wanted = [choices.left.value, choices.right.value].filter((value) => value !== "").map(Number);
    const traces = [...new Set(wanted)].map((setting) => tracesOf(number).find((one) => one.key === key && one.setting === setting));
    panels = traces.filter(Boolean).map((trace) => makePanel(trace, section));
    byId("replay-panels").replaceChildren(...panels.map((panel) => panel.node));
    const item = section.items.find((one) => one.key === key);
    byId("replay-question").hidden = !item?.prompt;
    byId("replay-question").lastElementChild.textContent = item?.prompt ?? "";
    slider.max = Math.max(0, ...panels.map((panel) => panel.total));
    go(Math.round(Number(slider.max) / 2));
  }

  if (data.traces.length) {
    byId("replay").hidden = false;
    const sections = [...new Set(data.traces.map((trace) => trace.section))];
    fill(choices.section, sections.map((number) => [number, data.sections[number].title]));
    choices.section.addEventListener("change", () => chooseSection(Number(choices.section.value)));
    for (const name of ["item", "left", "right"]) choices[name].addEventListener("change", chooseTraces);
    slider.addEventListener("input", () => { stop(); draw(); });
    play.addEventListener("click", startOrStop);
    const jump = { first: () => 0, back: () => Number(slider.value) - 1, next: () => Number(slider.value) + 1, last: () => slider.max };
    for (const [name, to] of Object.entries(jump)) byId(`replay-${name}`).addEventListener("click", () => { stop(); go(to()); });
    chooseSection(busiest(sections));
  }

  // The task whose traces differ most: there a replay shows something.
  function busiest(sections) {
    const steps = (number) => Math.max(...tracesOf(number).map((trace) => trace.steps.length));
    return sections.reduce((best, number) => (steps(number) > steps(best) ? number : best));
  }

  // --- items ---------------------------------------------------------------------------------------------------------

  function snippet(text, length) {
    const line = text.replace(/\s+/g, " ").trim();
    return line.length > length ? `${line.slice(0, length)}…` : line;
  }

  const list = byId("items-list"), detail = byId("items-detail");
  const filters = { section: byId("items-section"), filter: byId("items-filter"), setting: byId("items-setting"), search: byId("items-search") };
  const ALL = "all";
  // The settings that are looked at: all, or one and what it is compared with.
  function wanted() {
    if (filters.setting.value === ALL) return null;
    const setting = Number(filters.setting.value);
    return [setting, data.references[Number(filters.section.value)][setting]];
  }
  const given = (answer) => (wanted() ? answer[3].filter((setting) => wanted().includes(setting)) : answer[3]);
  const answers = (item) => item.answers.filter((answer) => given(answer).length);
  const right = (item) => item.answers.reduce((sum, answer) => sum + (answer[1] === 1 ? given(answer).length : 0), 0);
  const asked = (item) => item.answers.reduce((sum, answer) => sum + given(answer).length, 0);
  const passes = {
    all: () => true,
    split: (item) => new Set(answers(item).map((answer) => answer[1])).size > 1,
    wrong: (item) => right(item) < asked(item),
    none: (item) => right(item) === 0,
  };

  function listItems() {
    const section = data.sections[Number(filters.section.value)], text = filters.search.value.toLowerCase();
    const holds = (item) => !text || `${item.key} ${item.prompt ?? ""} ${item.answers.map((answer) => answer[0]).join(" ")}`.toLowerCase().includes(text);
    const found = section.items.filter((item) => passes[filters.filter.value](item) && holds(item));
    const cut = section.items.length < section.total ? `; the report holds the first ${section.items.length} of ${section.total} items` : "";
    byId("items-count").textContent = `${found.length} of ${section.items.length} items shown${cut}.`;
    list.replaceChildren(...found.map((item) => element("li", {}, element("button", {
      type: "button", "aria-pressed": "false", onclick: (event) => showItem(section, item, event.currentTarget),
    }, element("span", { class: "score" }, `${right(item)} of ${asked(item)} right`), element("span", { class: "snip" }, snippet(item.prompt ?? item.key, 60))))));
    if (found.length) showItem(section, found[0], list.querySelector("button"));
    else detail.replaceChildren(element("p", { class: "quiet" }, "No item is like that."));
  }

  function showItem(section, item, button) {
    for (const other of list.querySelectorAll('[aria-pressed="true"]')) other.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-pressed", "true");
    const number = data.sections.indexOf(section);
    const traced = new Set(tracesOf(number).filter((trace) => trace.key === item.key).map((trace) => trace.setting));
    const parts = [element("h3", {}, `Item ${item.key}`)];
    const prompt = element("pre", { tabindex: 0, "aria-label": "Prompt" }, item.prompt ?? "The prompts did not come with these runs.");
    parts.push(element("h4", {}, "Prompt"), prompt);
    if (item.target) parts.push(element("h4", {}, "Right answer, as the data have it"), element("pre", { tabindex: 0, "aria-label": "Right answer" }, item.target));
    for (const answer of answers(item)) {
      const base = data.references[number][given(answer)[0]];
      const plain = item.answers.find((one) => one[3].includes(base));
      const differs = plain && plain !== answer;
      const chips = given(answer).map((setting) => {
        const forwards = item.nfe[setting] == null ? "" : ` · ${item.nfe[setting]}`;
        const name = section.settings[setting] + forwards;
        if (!traced.has(setting)) return element("span", {}, name);
        return element("button", { type: "button", title: "Replay", onclick: () => replay(number, item.key, setting) }, `▶ ${name}`);
      });
      const shown = differs ? difference(plain[0], answer[0]) : [answer[0] || "(nothing)"];
      parts.push(element("h4", {}, badge(answer)), element("pre", { tabindex: 0, "aria-label": "Answer" }, ...shown), element("div", { class: "chips" }, ...chips));
    }
    parts.push(element("p", { class: "quiet" }, "The number behind a setting is its forwards for this item. ", element("ins", {}, "Marked"), " is what one token a step did not write, ", element("del", {}, "struck"), " what it wrote instead."));
    detail.replaceChildren(...parts);
    prompt.scrollTop = prompt.scrollHeight; // the question stands behind the examples
  }

  // Words of an answer beside those of another: the longest common row of words stays plain.
  function difference(from, to) {
    const [a, b] = [from, to].map((text) => text.split(/(\s+)/));
    if (a.length * b.length > 1e6) return [to];
    const common = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
    for (let i = a.length - 1; i >= 0; i--) for (let j = b.length - 1; j >= 0; j--) {
      common[i][j] = a[i] === b[j] ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1]);
    }
    const found = [];
    const add = (tag, word) => {
      const last = found[found.length - 1];
      if (last && last[0] === tag) last[1] += word;
      else found.push([tag, word]);
    };
    for (let i = 0, j = 0; i < a.length || j < b.length;) {
      if (i < a.length && j < b.length && a[i] === b[j]) add("", a[i++]), j++;
      else if (j >= b.length || (i < a.length && common[i + 1][j] >= common[i][j + 1])) add("del", a[i++]);
      else add("ins", b[j++]);
    }
    return found.filter(([, text]) => text).map(([tag, text]) => (tag ? element(tag, {}, text) : text));
  }

  function chooseSettings(chosen) {
    const names = data.sections[Number(filters.section.value)].settings;
    fill(filters.setting, [[ALL, "all settings"], ...names.map((name, i) => [i, `${name}, beside one token a step`])], chosen);
  }

  function openItems(number, setting) {
    filters.section.value = number;
    chooseSettings(setting);
    filters.filter.value = data.sections[number].items.some(passes.split) ? "split" : ALL;
    filters.search.value = "";
    listItems();
    byId("items").scrollIntoView();
    filters.setting.focus({ preventScroll: true });
  }

  function replay(number, key, setting) {
    chooseSection(number, key, setting);
    go(0);
    byId("replay").scrollIntoView();
    play.focus({ preventScroll: true });
  }

  if (data.sections.some((section) => section.items.length)) {
    byId("items").hidden = false;
    fill(filters.section, data.sections.map((section, i) => [i, section.title]));
    filters.setting.replaceChildren(element("option", { value: ALL }));
    const most = data.sections.map((section) => section.items.filter(passes.split).length);
    filters.section.value = most.indexOf(Math.max(...most));
    chooseSettings(ALL);
    filters.section.addEventListener("input", () => chooseSettings(ALL));
    for (const input of Object.values(filters)) input.addEventListener("input", listItems);
    listItems();
  }

  // --- figure --------------------------------------------------------------------------------------------------------

  if (data.panels.length) {
    byId("figure").hidden = false;
    fill(byId("figure-panel"), data.panels.map((panel, i) => [i, panel.title]));
    chart(data, element, openItems);
  }
})();
