"use strict";
// Sorts, filters and opens rows that are in the page already; it makes no text out of data.
(() => {
  const root = document.documentElement;
  const tables = [...document.querySelectorAll("table.board")];
  root.classList.add("js");

  const number = (cell) => {
    const found = cell.textContent.replace(/,/g, "").match(/^\s*[-−]?\d+(\.\d+)?(e[-+]?\d+)?/);
    return found ? parseFloat(found[0].replace("−", "-")) : NaN;
  };

  // Rows without a figure come last, whichever way.
  const compare = (a, b, isText, sign) => {
    if (isText) return sign * a.textContent.localeCompare(b.textContent);
    const x = number(a), y = number(b);
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return sign * (x - y);
  };

  const sort = (table, first, head, column) => {
    const before = head.getAttribute("aria-sort");
    table.querySelectorAll("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
    const next = { ascending: "descending", descending: "" }[before] ?? "ascending";
    let bodies = first;
    if (next) {
      head.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      const cell = (body) => body.rows[0].cells[column];
      const isText = head.classList.contains("t");
      bodies = [...first].sort((a, b) => compare(cell(a), cell(b), isText, sign));
    }
    table.append(...bodies);
  };

  const toggle = (body, button) => {
    const isOpen = body.classList.toggle("shown");
    button.setAttribute("aria-expanded", String(isOpen));
  };

  const opens = (body) => {
    const name = body.rows[0].querySelector("b");
    if (!name || body.rows.length < 2) return;
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-expanded", "false");
    name.replaceWith(button);
    button.append(name);
    body.classList.add("can");
    body.rows[0].addEventListener("click", () => {
      if (!String(window.getSelection())) toggle(body, button);
    });
  };

  for (const table of tables) {
    const bodies = [...table.tBodies];
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => sort(table, bodies, head, column));
    });
    bodies.forEach(opens);
  }

  const words = document.getElementById("filter");
  const state = document.getElementById("state");
  const shown = document.getElementById("shown");
  const filter = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0, all = 0;
    for (const table of tables) {
      for (const body of table.tBodies) {
        const text = body.rows[0].textContent.toLowerCase();
        const isReported = table.classList.contains("reported");
        const hasState = !state.value || (!isReported && body.classList.contains(state.value));
        body.hidden = !(hasState && wanted.every((word) => text.includes(word)));
        count += !body.hidden;
        all += 1;
      }
    }
    shown.textContent = count < all ? `${count} of ${all} rows` : "";
  };
  words.addEventListener("input", filter);
  state.addEventListener("input", filter);
  words.form.addEventListener("submit", (event) => event.preventDefault());
  words.form.hidden = false;
})();
