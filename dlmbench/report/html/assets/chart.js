"use strict";
// Accuracy against cost, as SVG by Observable Plot: one tab stop, arrow keys from point to point, Enter opens the items.
function chart({ panels, axes, marks }, element, open) {
  const byId = (id) => document.getElementById(id);
  const choice = byId("figure-panel"), axis = byId("figure-axis"), legend = byId("figure-legend");
  const place = byId("figure-place"), tip = byId("figure-tip");
  const hidden = new Set();
  let current = 0; // the point that has the tab stop

  function show() {
    const panel = panels[choice.value], methods = [...new Set(panel.points.map((point) => point.method))];
    const names = Object.keys(axes).filter((name) => panel.points.some((point) => point.x[name] != null));
    const chosen = names.includes(axis.value) ? axis.value : names[0];
    axis.replaceChildren(...names.map((name) => element("option", { value: name }, axes[name][0])));
    axis.value = chosen;
    legend.replaceChildren(...methods.map((name) => {
      const [colour, symbol] = marks[name];
      return element("button", {
        type: "button", "aria-pressed": String(!hidden.has(name)),
        onclick: () => { hidden.delete(name) || hidden.add(name); show(); focusLegend(name); },
      }, element("span", { class: `swatch ${symbol}`, style: `--colour:${colour}`, "aria-hidden": "true" }), name);
    }));
    draw(panel, chosen);
  }

  function focusLegend(name) {
    [...legend.children].find((button) => button.textContent === name)?.focus();
  }

  function draw(panel, x) {
    const points = panel.points.filter((point) => point.x[x] != null && !hidden.has(point.method))
      .sort((a, b) => a.x[x] - b.x[x]);
    const at = (point) => point.x[x], colour = (point) => marks[point.method][0];
    const [long, short, larger] = axes[x], ends = [Math.min(...points.map(at)), Math.max(...points.map(at))];
    const log = ends[0] > 0 && ends[1] / ends[0] > 8;
    const best = front(points.filter((point) => point.own), at, larger);
    const width = Math.max(300, Math.min(place.clientWidth, 1100));
    const made = Plot.plot({
      width, height: Math.round(Math.max(300, Math.min(520, width * 0.55))), marginLeft: 46, marginBottom: 42, inset: 14,
      style: { background: "transparent", fontSize: "13px", overflow: "visible" },
      x: { type: log ? "log" : "linear", label: `${width < 500 ? short : long} (${larger ? "right" : "left"} is better)`, labelAnchor: "center", labelArrow: "none", ticks: width < 500 ? 4 : 8, tickFormat: log ? "~s" : undefined },
      y: { label: "accuracy, % (95 % interval)", nice: true, labelArrow: "none" },
      color: { type: "identity" }, symbol: { type: "identity" },
      marks: [
        Plot.gridY({ strokeOpacity: 0.12 }), Plot.gridX({ strokeOpacity: 0.12 }),
        Plot.line(best, { x: at, y: (point) => point.y[0], curve: larger ? "step-before" : "step-after", stroke: "var(--quiet)", strokeWidth: 1.6 }),
        Plot.line(points, { x: at, y: (point) => point.y[0], z: "thread", stroke: colour, strokeOpacity: 0.5, strokeWidth: 1.2 }),
        Plot.ruleX(points, { x: at, y1: (point) => point.y[1], y2: (point) => point.y[2], stroke: colour, strokeOpacity: 0.45 }),
        Plot.dot(points, {
          x: at, y: (point) => point.y[0], r: (point) => (best.includes(point) ? 7 : 5), fill: colour,
          fillOpacity: (point) => (best.includes(point) ? 1 : 0.55), stroke: "var(--card)", strokeWidth: 1.5,
          symbol: (point) => marks[point.method][1], ariaLabel: (point) => words(point, x), className: "dots", sort: null,
        }),
      ],
      r: { type: "identity" },
    });
    const svg = made.matches?.("svg") ? made : made.querySelector("svg");
    svg.setAttribute("role", "group");
    svg.setAttribute("aria-label", `Accuracy against ${long} of ${points.length} settings on ${panel.title}. Arrow keys move from point to point.`);
    for (const part of svg.querySelectorAll(":scope > g:not(.dots), :scope > style")) part.setAttribute("aria-hidden", "true");
    place.replaceChildren(made);
    tip.hidden = true;
    keys([...svg.querySelectorAll(".dots > *")], points, panel, x);
  }

  // Those of the points that no other one beats, in the order of the axis.
  function front(points, at, larger) {
    const found = [], order = (a, b) => (at(a) - at(b)) * (larger ? -1 : 1) || b.y[0] - a.y[0];
    for (const point of [...points].sort(order)) if (!found.length || point.y[0] > found.at(-1).y[0]) found.push(point);
    return larger ? found.reverse() : found;
  }

  function keys(dots, points, panel, x) {
    current = Math.min(current, dots.length - 1);
    dots.forEach((dot, i) => {
      dot.setAttribute("role", "button");
      dot.setAttribute("tabindex", i === current ? 0 : -1);
      const told = () => tell(dot, points[i], x), quiet = () => { tip.hidden = true; };
      dot.addEventListener("pointerenter", told);
      dot.addEventListener("pointerleave", quiet);
      dot.addEventListener("focus", told);
      dot.addEventListener("blur", quiet);
      dot.addEventListener("click", () => open(panel.section, points[i].setting));
      dot.addEventListener("keydown", (event) => {
        const moves = { ArrowRight: i + 1, ArrowUp: i + 1, ArrowLeft: i - 1, ArrowDown: i - 1, Home: 0, End: dots.length - 1 };
        if (event.key === "Enter" || event.key === " ") open(panel.section, points[i].setting);
        else if (event.key === "Escape") tip.hidden = true;
        else if (event.key in moves) {
          dot.setAttribute("tabindex", -1);
          current = Math.max(0, Math.min(dots.length - 1, moves[event.key]));
          dots[current].setAttribute("tabindex", 0);
          dots[current].focus();
        } else return;
        event.preventDefault();
      });
    });
  }

  function words(point, x) {
    const [value, low, high] = point.y.map((number) => number.toFixed(1));
    const paid = point.x[x].toLocaleString("en", { maximumFractionDigits: 1 });
    return `${point.name}: ${value} % [${low}, ${high}], ${axes[x][1]} ${paid}${point.told ? `; ${point.told}` : ""}`;
  }

  function tell(dot, point, x) {
    tip.replaceChildren(element("b", {}, point.name), element("br"), words(point, x).slice(point.name.length + 2));
    tip.hidden = false;
    const around = place.getBoundingClientRect(), box = dot.getBoundingClientRect();
    const left = Math.max(0, Math.min(around.width - tip.offsetWidth, box.left - around.left + box.width / 2 - tip.offsetWidth / 2));
    const above = box.top - around.top - tip.offsetHeight - 8;
    tip.style.left = `${left}px`;
    tip.style.top = `${above < 0 ? box.bottom - around.top + 8 : above}px`;
  }

  choice.addEventListener("change", () => { current = 0; show(); });
  axis.addEventListener("change", show);
  let drawn = 0;
  new ResizeObserver(() => { if (place.clientWidth !== drawn) { drawn = place.clientWidth; show(); } }).observe(place);
}
