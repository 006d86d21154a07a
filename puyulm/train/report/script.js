"use strict";
(() => {
  const { charts, runs } = JSON.parse(document.getElementById("data").textContent);
  const space = { left: 52, right: 14, top: 26, bottom: 24 };
  const hidden = new Set();
  let axis = "step", logarithmic = false, range = null, cursor = null;

  const svg = (name, attributes = {}, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const colour = (line) => (runs.length === 1 && line.c === 0 ? "one" : `c${line.c % 8}`);

  // A step's place on the chosen axis: straight between knots.
  const place = (run, step) => {
    if (axis === "step") return step;
    const { step: steps, [axis]: values } = runs[run].axes;
    let low = 0, high = steps.length - 1;
    if (step >= steps[high]) return values[high];
    while (high - low > 1) { const middle = (low + high) >> 1; if (steps[middle] <= step) low = middle; else high = middle; }
    return values[low] + (values[high] - values[low]) * (step - steps[low]) / Math.max(steps[high] - steps[low], 1);
  };
  const nearest = (sorted, wanted) => {
    let low = 0, high = sorted.length - 1;
    while (high - low > 1) { const middle = (low + high) >> 1; if (sorted[middle] <= wanted) low = middle; else high = middle; }
    return Math.abs(sorted[high] - wanted) < Math.abs(sorted[low] - wanted) ? high : low;
  };

  const whole = (value) => Math.round(value).toLocaleString("en");
  const short = (value) => {
    const size = Math.abs(value);
    for (const [unit, name] of [[1e12, " T"], [1e9, " B"], [1e6, " M"], [1e4, " k"]]) {
      if (size >= unit) { const scaled = value / (unit === 1e4 ? 1e3 : unit); return `${+scaled.toPrecision(3)}${name}`; }
    }
    if (size && size < 1e-3) return value.toExponential(1).replace("e-0", "e-");
    return size >= 1000 ? whole(value) : `${+value.toPrecision(4)}`;
  };
  const exact = (value) => {
    const size = Math.abs(value);
    if (size >= 1e5) return short(value);
    if (size && size < 1e-3) return value.toExponential(3);
    return size >= 1000 ? value.toLocaleString("en", { maximumFractionDigits: 1 }) : `${+value.toPrecision(5)}`;
  };
  const onAxis = (value) => (axis === "step" ? `step ${whole(value)}` : axis === "tokens" ? `${exact(value)} tokens` : `${exact(value)} hours`);

  const ticks = (low, high, most) => {
    const raw = (high - low) / most || 1, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((times) => times * power).find((size) => size >= raw);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
    return found;
  };
  const logTicks = (low, high) => {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      for (const times of [1, 2, 5]) { const at = times * 10 ** power; if (at >= low && at <= high) found.push(at); }
    }
    return found.length > 1 && found.length < 9 ? found : ticks(low, high, 5);
  };

  // What of the values is shown: all, unless a few lie far outside; these leave the chart at its edge.
  const bounds = (values, sure, zero, log) => {
    const sorted = Float64Array.from(values.length ? values : sure).sort();
    if (!sorted.length) return [0, 1];
    const at = (share) => sorted[Math.min(sorted.length - 1, Math.max(0, Math.round(share * (sorted.length - 1))))];
    let low = sorted[0], high = sorted[sorted.length - 1];
    const inner = at(0.98) - at(0.02) || Math.abs(high) * 1e-3 || 1;
    if (!log) {
      if (high > at(0.98) + 1.5 * inner) high = at(0.98) + inner / 2;
      if (low < at(0.02) - 1.5 * inner) low = at(0.02) - inner / 2;
    }
    for (const value of sure) { low = Math.min(low, value); high = Math.max(high, value); }
    if (zero) low = Math.min(low, 0);
    if (log) return [low / 1.05, high * 1.05];
    const air = (high - low || Math.abs(high) || 1) * 0.05;
    return [zero && low === 0 ? 0 : low - air, high + air];
  };

  class Chart {
    constructor(figure, chart) {
      this.chart = chart;
      this.plot = figure.querySelector(".plot");
      this.plot.setAttribute("role", "img");
      this.plot.setAttribute("aria-label", `${chart.title}, ${chart.unit}`);
      this.legend(figure.querySelector(".legend"));
      this.listen();
    }

    get lines() { return this.chart.lines.filter((line) => !hidden.has(line.run)); }

    legend(element) {
      const seen = new Set();
      for (const line of this.chart.lines) {
        const many = runs.length > 1;
        const key = many ? line.style + line.label : line.style + line.label + line.c;
        if (seen.has(key)) continue;
        seen.add(key);
        const item = document.createElement("span"), sample = svg("svg", { width: 20, height: 8, class: many ? "c-1" : colour(line) });
        sample.append(svg("path", { class: `curve ${line.style}`, d: "M0 4H20" }));
        if (line.style === "dots") sample.append(svg("circle", { class: "point", cx: 10, cy: 4, r: 2.5 }));
        item.append(sample, line.label);
        element.append(item);
      }
      element.hidden = seen.size < 2;
    }

    draw() {
      const width = this.plot.clientWidth, height = this.plot.clientHeight;
      const lines = this.lines.map((line) => ({ ...line, at: line.x.map((step) => place(line.run, step)) }));
      let left = Infinity, right = -Infinity;
      for (const line of lines) { left = Math.min(left, line.at[0]); right = Math.max(right, line.at[line.at.length - 1]); }
      if (range) [left, right] = range;
      if (!(right > left)) { left = (Number.isFinite(left) ? left : 0) - 0.5; right = left + 1; }
      const log = logarithmic && this.chart.log && lines.every((line) => line.y.every((value) => value > 0));
      const inside = [], sure = [];  // the few values of validations are never taken for outliers
      for (const line of lines) {
        line.at.forEach((x, i) => { if (x >= left && x <= right) (line.style === "dots" ? sure : inside).push(line.y[i]); });
      }
      const [low, high] = bounds(inside, sure, this.chart.zero, log);
      const flat = (y) => (log ? Math.log(y) : y);
      const x = (value) => space.left + (width - space.left - space.right) * (value - left) / (right - left);
      const y = (value) => space.top + (height - space.top - space.bottom) * (1 - (flat(value) - flat(low)) / (flat(high) - flat(low)));
      Object.assign(this, { view: lines, x, y, left, right, width, height });

      const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
      const id = `clip-${this.chart.id}`, clip = svg("clipPath", { id });
      clip.append(svg("rect", { x: space.left, y: space.top - 4, width: width - space.left - space.right, height: height - space.top - space.bottom + 8 }));
      root.append(clip);
      this.phases(root);
      for (const value of log ? logTicks(low, high) : ticks(low, high, Math.max(2, height / 55))) {
        root.append(svg("path", { class: "grid", d: `M${space.left} ${y(value)}H${width - space.right}` }));
        root.append(svg("text", { x: space.left - 7, y: y(value) + 4, "text-anchor": "end" }, short(value)));
      }
      for (const value of ticks(left, right, Math.max(2, width / 110))) {
        if (axis !== "hours" && !Number.isInteger(value)) continue;
        root.append(svg("text", { x: x(value), y: height - 6, "text-anchor": x(value) > width - 30 ? "end" : "middle" }, short(value)));
      }
      root.append(svg("path", { class: "axis", d: `M${space.left} ${height - space.bottom}H${width - space.right}` }));
      const inner = svg("g", { "clip-path": `url(#${id})` });
      const order = ["raw", "line", "dash", "dots"];
      for (const line of [...lines].sort((a, b) => order.indexOf(a.style) - order.indexOf(b.style))) {
        const points = line.at.map((value, i) => `${x(value).toFixed(1)} ${y(line.y[i]).toFixed(1)}`);
        inner.append(svg("path", { class: `curve ${line.style} ${colour(line)}${runs.length > 1 ? " many" : ""}`, d: `M${points.join("L")}` }));
        if (line.style === "dots" && points.length < width / 6 || points.length === 1) {
          line.at.forEach((value, i) => inner.append(svg("circle", { class: `point ${colour(line)}`, cx: x(value), cy: y(line.y[i]), r: 2.6 })));
        }
      }
      root.append(inner);
      this.marks(root);
      this.over = svg("g");
      root.append(this.over);
      this.plot.querySelector("svg")?.remove();
      this.plot.prepend(root);
      this.hover();
    }

    phases(root) {
      const run = runs.findIndex((one, number) => one.phases.length && !hidden.has(number));
      if (run < 0) return;
      runs[run].phases.forEach(([name, first, last], number) => {
        const from = Math.max(this.x(place(run, first - 1)), space.left), to = Math.min(this.x(place(run, last)), this.width - space.right);
        if (to <= from) return;
        if (number % 2) root.append(svg("rect", { class: "shade", x: from, y: space.top, width: to - from, height: this.height - space.top - space.bottom }));
        if (to - from > 6.5 * name.length) root.append(svg("text", { x: (from + to) / 2, y: space.top - 14, "text-anchor": "middle" }, name));
      });
    }

    marks(root) {
      const bottom = this.height - space.bottom;
      this.marked = [];
      runs.forEach((run, number) => {
        if (hidden.has(number)) return;
        for (const mark of run.marks) {
          const at = this.x(place(number, mark.step));
          if (at < space.left - 1 || at > this.width - space.right + 1) continue;
          this.marked.push({ at, run: number, ...mark });
          if (mark.kind === "checkpoint") root.append(svg("path", { class: "mark checkpoint", d: `M${at} ${bottom}v4` }));
          else if (mark.kind === "skipped") root.append(svg("path", { class: `mark skipped${runs.length > 1 ? ` c${number % 8}` : ""}`, d: `M${at - 3.5} ${space.top - 10}h7l-3.5 6z` }));
          else root.append(svg("path", { class: `mark ${["rollback", "resume", "stopped"].includes(mark.kind) ? mark.kind : "other"}`, d: `M${at} ${space.top}V${bottom}` }));
        }
      });
    }

    hover() {
      this.over.replaceChildren();
      this.tip?.remove();
      this.tip = null;
      if (!cursor) return;
      if (cursor.from !== undefined) {
        const [a, b] = [this.x(cursor.from), this.x(cursor.at)].sort((one, other) => one - other);
        this.over.append(svg("rect", { class: "chosen", x: a, y: space.top, width: b - a, height: this.height - space.top - space.bottom }));
      }
      const across = this.x(cursor.at);
      if (across < space.left || across > this.width - space.right) return;
      this.over.append(svg("path", { class: "cross", d: `M${across} ${space.top}V${this.height - space.bottom}` }));
      if (cursor.chart === this) this.show(across);
    }

    show(across) {
      const rows = [];
      for (const line of this.view) {
        const i = nearest(line.at, cursor.at);
        if (Math.abs(this.x(line.at[i]) - across) > 40) continue;
        if (line.style !== "raw") this.over.append(svg("circle", { class: `point ${colour(line)}`, cx: this.x(line.at[i]), cy: this.y(line.y[i]), r: 3 }));
        rows.push([line, line.y[i], line.x[i]]);
      }
      const near = this.marked.filter((mark) => Math.abs(mark.at - across) < 5).slice(0, 4);
      if (!rows.length && !near.length) return;
      const tip = document.createElement("div"), head = document.createElement("b"), table = document.createElement("table");
      tip.className = "tip";
      head.textContent = onAxis(cursor.at);
      for (const [line, value] of rows) {
        const row = table.insertRow(), name = row.insertCell(), dot = document.createElement("i");
        dot.className = `dot ${runs.length > 1 || line.c ? colour(line) : ""}`;
        if (colour(line) === "one") dot.style.background = "var(--kept)";
        name.append(dot, runs.length > 1 ? `${runs[line.run].name}, ${line.label}` : line.label);
        row.insertCell().textContent = exact(value);
      }
      tip.append(head, table);
      for (const mark of near) {
        const text = document.createElement("div");
        text.className = `what key ${mark.kind}`;
        text.textContent = `${runs.length > 1 ? `${runs[mark.run].name}: ` : ""}${mark.text}`;
        tip.append(text);
      }
      this.plot.append(tip);
      const room = this.width - across - 16;
      tip.style.top = `${space.top}px`;
      if (room > tip.offsetWidth) tip.style.left = `${across + 14}px`;
      else tip.style.left = `${Math.max(across - 14 - tip.offsetWidth, -space.left)}px`;
      this.tip = tip;
    }

    listen() {
      const value = (event) => {
        const across = event.clientX - this.plot.getBoundingClientRect().left;
        const at = this.left + (across - space.left) / (this.width - space.left - space.right) * (this.right - this.left);
        return Math.min(Math.max(at, this.left), this.right);
      };
      this.plot.addEventListener("pointermove", (event) => {
        cursor = { chart: this, at: value(event), from: cursor?.chart === this ? cursor.from : undefined };
        drawn.forEach((chart) => chart.hover());
      });
      this.plot.addEventListener("pointerdown", (event) => {
        if (event.button) return;
        cursor = { chart: this, at: value(event), from: value(event) };
        this.plot.setPointerCapture(event.pointerId);
      });
      const leave = () => { cursor = null; drawn.forEach((chart) => chart.hover()); };
      this.plot.addEventListener("pointerup", (event) => {
        const from = cursor?.from, to = value(event);
        if (from !== undefined && Math.abs(this.x(to) - this.x(from)) > 6) zoom([Math.min(from, to), Math.max(from, to)]);
        cursor = event.pointerType === "mouse" ? { chart: this, at: to } : null;
        drawn.forEach((chart) => chart.hover());
      });
      this.plot.addEventListener("pointercancel", leave);
      this.plot.addEventListener("pointerleave", leave);
      this.plot.addEventListener("dblclick", () => zoom(null));
    }
  }

  const reset = document.getElementById("reset");
  const drawn = [...document.querySelectorAll(".chart")].map((figure) => new Chart(figure, charts[figure.dataset.chart]));
  const draw = () => drawn.forEach((chart) => chart.draw());
  const zoom = (to) => { range = to; reset.hidden = !to; draw(); };

  document.querySelector(".bar").hidden = false;
  reset.addEventListener("click", () => zoom(null));
  document.getElementById("log").addEventListener("change", (event) => { logarithmic = event.target.checked; draw(); });
  for (const choice of document.querySelectorAll("input[name=axis]")) {
    choice.addEventListener("change", () => { axis = choice.value; zoom(null); });
  }
  for (const button of document.querySelectorAll(".runkey")) {
    button.addEventListener("click", () => {
      const run = Number(button.dataset.run), off = !hidden.has(run);
      if (off) hidden.add(run); else hidden.delete(run);
      button.setAttribute("aria-pressed", String(!off));
      draw();
    });
  }
  let waiting = 0;
  new ResizeObserver(() => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(draw); }).observe(document.querySelector(".charts"));
  draw();
})();
