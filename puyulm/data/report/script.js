"use strict";
// Only conveniences: without this script everything can be read.
(() => {
  const tools = document.querySelector(".tools");
  if (!tools) return;
  tools.hidden = false;
  const rules = [...document.querySelectorAll(".rule")];
  const wide = matchMedia("(min-width: 761px)");
  for (const rule of rules) {
    rule.addEventListener("toggle", () => {  // what was kept, beside what was dropped
      if (rule.open && wide.matches) rule.closest(".beside").querySelector(".keptside > details").open = true;
    });
  }
  const set = (open) => rules.forEach((rule) => { if (!rule.hidden) rule.open = open; });
  document.getElementById("open").addEventListener("click", () => set(true));
  document.getElementById("close").addEventListener("click", () => set(false));
  document.getElementById("filter").addEventListener("input", (event) => {
    const wanted = event.target.value.trim().toLowerCase();
    for (const rule of rules) rule.hidden = wanted !== "" && !rule.textContent.toLowerCase().includes(wanted);
    for (const stage of document.querySelectorAll("div.stage")) {
      stage.hidden = wanted !== "" && !stage.querySelector(".rule:not([hidden])");
    }
  });
})();
