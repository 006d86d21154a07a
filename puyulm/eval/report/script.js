"use strict";
(() => {
  const index = JSON.parse(document.getElementById("index").textContent);
  const parts = [...document.querySelectorAll("script.samples")];
  const PAGE = 50, KEPT = 60;
  const one = (id) => document.getElementById(id);
  const runs = index.runs.length;
  let found = [], page = 0, turn = 0;

  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  // Signs that would steer or hide text are spelled out.
  const odd = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\uffff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
  const spelled = (text) => String(text).replace(odd, (sign) => `[U+${sign.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}]`);

  // Texts are unpacked part by part; the last ones used stay.
  const unpacked = new Map();
  const unpack = (number) => {
    let part = unpacked.get(number);
    if (part) unpacked.delete(number);
    else {
      const bytes = Uint8Array.from(atob(parts[number].textContent), (sign) => sign.charCodeAt(0));
      part = new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
    }
    unpacked.set(number, part);
    if (unpacked.size > KEPT) unpacked.delete(unpacked.keys().next().value);
    return part;
  };
  const sample = async (row) => (await unpack(Math.floor(row / index.part)))[row % index.part];

  const short = (text, most = 160) => {
    const flat = spelled(text).replace(/\s+/g, " ").trim();
    return flat.length > most ? `${flat.slice(0, most)}…` : flat;
  };
  const kind = { 1: ["✓", "yes", "right"], 0: ["✗", "no", "wrong"], p: ["◐", "partly", "partly right"], s: ["•", "none", "scored"], "-": ["–", "none", "not asked"] };
  const number = (value) => (Number.isInteger(value) ? value : +value.toFixed(4)).toLocaleString("en");

  // Which samples are wanted

  const chosen = () => {
    const run = runs > 1 ? Number(one("run").value) : 0;
    const task = one("task").value, subset = one("subset").value, verdict = one("verdict").value;
    const apart = runs > 1 && one("apart").checked, flags = (one("unanswered").checked ? 1 : 0) | (one("cut").checked ? 2 : 0);
    const rows = [];
    for (let row = 0; row < index.task.length; row++) {
      if (task !== "" && index.task[row] !== +task) continue;
      if (task !== "" && subset !== "" && index.subset[row] !== +subset) continue;
      if (verdict && index.state[run][row] !== verdict) continue;
      if ((+index.flags[run][row] & flags) !== flags) continue;
      if (apart && index.state.every((states) => states[row] === index.state[0][row])) continue;
      rows.push(row);
    }
    return rows;
  };

  const has = (item, wanted) => [item.id, item.prompt, item.target, ...item.answers.flatMap((answer) => (answer ? [answer.prompt, answer.answer, answer.note, ...answer.outputs] : []))]
    .some((text) => text && String(text).toLowerCase().includes(wanted));

  const search = async () => {
    const own = ++turn, wanted = one("text").value.trim().toLowerCase(), rows = chosen();
    page = 0;
    if (!wanted) { found = rows; return show(own); }
    found = [];
    let shown = 0;
    for (let at = 0; at < rows.length; at++) {
      if (has(await sample(rows[at]), wanted)) found.push(rows[at]);
      if (own !== turn) return;
      if (performance.now() - shown > 300) {
        shown = performance.now();
        one("found").textContent = `${number(found.length)} found, ${Math.floor(100 * at / rows.length)} % searched`;
        await new Promise((go) => setTimeout(go));
      }
    }
    await show(own);
  };

  // How they look

  const text = (parent, title, content, more = "") => {
    if (content === undefined || content === null || content === "") return null;
    parent.append(element("h4", "", title));
    const box = element("div", `text ${more}`, spelled(content));
    box.dir = "auto";
    parent.append(box);
    return box;
  };

  const choices = (parent, item, answer) => {
    const lines = (answer.prompt ?? item.prompt).split("\n"), table = element("table", "choices");
    const texts = lines.filter((line) => line.startsWith("-> ")).slice(-answer.outputs.length);
    const values = answer.outputs.map(Number), best = Math.max(...values);
    parent.append(element("h4", "", "log-probability of each choice"));
    answer.outputs.forEach((output, place) => {
      const row = table.insertRow();
      if (values[place] === best) row.className = "picked";
      row.insertCell().textContent = spelled(texts[place]?.slice(3) ?? String(place + 1));
      row.insertCell().textContent = values[place].toFixed(3);
    });
    parent.append(table);
  };

  const verdict = (answer, state) => {
    const [sign, className, word] = kind[state], line = element("h4");
    line.append(element("b", className, `${sign} ${word}`));
    const scores = Object.entries(answer.scores).map(([name, value]) => `${name} ${number(value)}`);
    const rest = [...scores, answer.tokens ? `${number(answer.tokens)} tokens` : "", answer.finish === "length" ? "cut off at the longest answer" : ""];
    line.append(`  ${rest.filter(Boolean).join(", ")}`);
    return line;
  };

  const body = (row, item) => {
    const made = element("div", "body"), answers = element("div", "answers");
    const prompt = text(made, "prompt", item.prompt);
    if (prompt) requestAnimationFrame(() => { prompt.scrollTop = prompt.scrollHeight; });  // the question is at the end
    text(made, "right answer", item.target);
    item.answers.forEach((answer, run) => {
      if (!answer) return;
      const box = element("div");
      if (runs > 1) box.append(element("h4", "", "")), box.lastChild.append(element("b", "", index.runs[run]));
      box.append(verdict(answer, index.state[run][row]));
      text(box, "its own prompt", answer.prompt);
      const likelihoods = answer.outputs.length > 1 && answer.outputs.every((output) => /^-?(\d+\.\d{6}|inf)$/.test(output));
      if (likelihoods) choices(box, item, answer);
      else answer.outputs.forEach((output, place) => text(box, answer.outputs.length > 1 ? `output ${place + 1}` : "output", output || "(nothing)"));
      text(box, "extracted", answer.answer ?? "(nothing)");
      text(box, "note", answer.note);
      answers.append(box);
    });
    made.append(answers);
    return made;
  };

  const line = (row, item) => {
    const made = element("details", "item"), head = element("summary"), marks = element("span", "marks");
    for (let run = 0; run < runs; run++) {
      const [sign, className, word] = kind[index.state[run][row]], mark = element("span", className, sign);
      mark.title = runs > 1 ? `${index.runs[run]}: ${word}` : word;
      marks.append(mark);
    }
    const task = index.tasks[index.task[row]], subset = task.subsets[index.subset[row]];
    const id = item.id.startsWith(`${subset}/`) && subset ? item.id.slice(subset.length + 1) : item.id;
    const repeat = item.repeat ? `answer ${item.repeat + 1}` : "";
    const glance = (name, content) => {
      const cell = element("span", "glance");
      cell.append(element("i", "", name), short(content));
      head.append(cell);
    };
    // What was chosen above is not said again, and the id is what stays when there is little room.
    const where = [one("task").value === "" ? task.title : "", one("subset").value === "" ? subset : ""];
    const what = element("span", "what"), end = element("span", "id"), joined = (words) => spelled(words.filter(Boolean).join(" · "));
    end.append(element("bdi", "", joined([id, repeat])));
    if (where.some(Boolean)) what.append(element("span", "where", joined(where)));
    what.append(end);
    what.title = joined([task.title, subset, id, repeat]);
    head.append(marks, what);
    glance(item.target ? "expected" : "", item.target);
    const answers = item.answers.filter(Boolean).map((answer) => answer.answer ?? (answer.outputs.length === 1 ? `(nothing in) ${answer.outputs[0]}` : "(nothing)"));
    glance("got", answers.map((answer) => short(answer, runs > 1 ? 60 : 160)).join("  |  "));
    made.append(head);
    made.addEventListener("toggle", () => { if (made.open && made.children.length === 1) made.append(body(row, item)); });
    return made;
  };

  const show = async (own) => {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const rows = found.slice(page * PAGE, (page + 1) * PAGE), lines = [];
    for (const row of rows) {
      lines.push(line(row, await sample(row)));
      if (own !== turn) return;
    }
    one("list").replaceChildren(...lines);
    one("found").textContent = `${number(found.length)} of ${number(index.task.length)}`;
    one("page").textContent = `${number(page + 1)} / ${number(pages)}`;
    one("back").disabled = page === 0;
    one("on").disabled = page === pages - 1;
  };

  // What can be chosen

  const option = (value, content) => {
    const made = element("option", "", spelled(content));
    made.value = value;
    return made;
  };
  const subsets = () => {
    const task = one("task").value, names = task === "" ? [] : index.tasks[task].subsets;
    one("subset").hidden = names.length < 2;
    one("subset").replaceChildren(option("", "all subsets"), ...names.map((name, place) => option(place, name || "(none)")));
  };
  const move = (pages) => { page += pages; show(++turn); };

  if (!index.task.length) return;
  document.querySelector(".browse").hidden = false;
  if (typeof DecompressionStream === "undefined") {
    one("list").append(element("p", "warning", "This browser is too old to unpack the samples."));
    return;
  }
  one("task").append(...index.tasks.map((task, place) => option(place, task.title)));
  one("task").hidden = index.tasks.length < 2;
  if (index.tasks.length === 1) one("task").value = "0";
  subsets();
  one("task").addEventListener("change", () => { subsets(); search(); });
  for (const id of ["subset", "run", "verdict", "apart", "unanswered", "cut"]) one(id)?.addEventListener("change", search);
  let waiting = 0;
  one("text").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, 250); });
  one("back").addEventListener("click", () => move(-1));
  one("on").addEventListener("click", () => move(1));
  search();
})();
