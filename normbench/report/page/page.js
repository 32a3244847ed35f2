"use strict";
(() => {
  const details = JSON.parse(document.getElementById("details").textContent);
  const list = document.getElementById("run-list");
  const back = document.getElementById("all-runs");
  const tip = document.getElementById("tip");
  let cell = "";

  const closeDetails = (table) => {
    for (const row of table.querySelectorAll("tr.detail")) row.remove();
    for (const button of table.querySelectorAll(".more")) button.setAttribute("aria-expanded", "false");
  };

  // --- sorting: numbers by unrounded value, texts alphabetically, empty entries last
  const valueOf = (row, place) => {
    const data = row.cells[place];
    if (data.dataset.v !== undefined) return Number(data.dataset.v);
    return data.textContent.trim();
  };
  const compare = (a, b) => {
    const numbers = [a, b].map((value) => typeof value === "number");
    if (numbers[0] && numbers[1]) return a - b;
    if (numbers[0] !== numbers[1]) return numbers[0] ? -1 : 1;
    return a.localeCompare(b, undefined, { numeric: true });
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    heads.forEach((head, place) => head.addEventListener("click", () => {
      closeDetails(table);
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row, place), row]);
      const numeric = rows.some(([value]) => typeof value === "number");
      rows.sort(([a], [b]) => {
        const mixed = (typeof a === "number") !== (typeof b === "number");
        return numeric && mixed ? compare(a, b) : (down ? -1 : 1) * compare(a, b);
      });
      table.tBodies[0].append(...rows.map(([, row]) => row));
    }));
  }

  // --- filtering: rows by words, all of which must occur; the list of runs also by cell
  const filter = (table, text) => {
    closeDetails(table);
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of table.tBodies[0].rows) {
      const has = row.textContent.toLowerCase();
      const there = words.every((word) => has.includes(word));
      row.hidden = !there || (table === list && cell !== "" && row.dataset.cell !== cell);
    }
  };
  for (const field of document.querySelectorAll("input.filter")) {
    const table = field.dataset.for
      ? document.getElementById(field.dataset.for)
      : field.parentElement.querySelector("table");
    field.addEventListener("input", () => filter(table, field.value));
  }
  const show = (name) => {
    cell = name;
    back.hidden = name === "";
    back.textContent = name === "" ? "" : `${details.cells[name]} ✕ show all`;
    filter(list, document.querySelector("input[data-for=run-list]").value);
  };
  back.addEventListener("click", () => show(""));
  const lead = (name, behavior = "smooth") => {
    document.querySelector("input[data-for=run-list]").value = "";
    show(name);
    document.getElementById("runs").scrollIntoView({ behavior });
  };
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-cell]");
    if (!link) return;
    event.preventDefault();
    lead(link.dataset.cell);
    history.replaceState(null, "", link.getAttribute("href"));
  });
  // --- a run's config, origin and command
  list.addEventListener("click", (event) => {
    const button = event.target.closest(".more");
    if (!button) return;
    const row = button.closest("tr");
    if (button.getAttribute("aria-expanded") === "true") {
      row.nextElementSibling.remove();
      button.setAttribute("aria-expanded", "false");
      return;
    }
    button.setAttribute("aria-expanded", "true");
    const run = details.runs[row.dataset.run];
    const box = document.createElement("tr");
    box.className = "detail";
    const data = box.insertCell();
    data.colSpan = row.cells.length;
    const facts = document.createElement("dl");
    for (const [key, value] of Object.entries({ ...run.facts, command: run.command })) {
      const term = document.createElement("dt");
      const text = document.createElement("dd");
      term.textContent = key;
      text.textContent = value;
      facts.append(term, text);
    }
    data.append(facts);
    row.after(box);
  });

  if (details.cells[location.hash.slice(1)]) lead(location.hash.slice(1), "instant");

  // --- tooltips of figures: the value nearest to the pointer, within 24 pixels
  const REACH = 24;
  let lit = null;
  const light = (mark, x, y) => {
    if (lit && lit !== mark) lit.classList.remove("on");
    lit = mark;
    tip.hidden = !mark;
    if (!mark) return;
    mark.classList.add("on");
    tip.textContent = mark.dataset.tip;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(6, Math.min(x + 14, innerWidth - width - 6))}px`;
    tip.style.top = `${y - height - 12 > 4 ? y - height - 12 : y + 16}px`;
  };
  for (const figure of document.querySelectorAll("svg.figure")) {
    const marks = [...figure.querySelectorAll(".hit")].map((mark) => ({
      mark, x: Number(mark.getAttribute("cx")), y: Number(mark.getAttribute("cy")),
    }));
    if (!marks.length) continue;
    const nearest = (event) => {
      const matrix = figure.getScreenCTM();
      let best = null;
      let least = REACH;
      for (const { mark, x, y } of marks) {
        const far = Math.hypot(x * matrix.a + matrix.e - event.clientX, y * matrix.d + matrix.f - event.clientY);
        if (far < least) [best, least] = [mark, far];
      }
      return best;
    };
    figure.addEventListener("pointermove", (event) => light(nearest(event), event.clientX, event.clientY));
    figure.addEventListener("pointerdown", (event) => light(nearest(event), event.clientX, event.clientY));
    figure.addEventListener("pointerleave", () => light(null));
    figure.addEventListener("click", (event) => {
      const mark = event.pointerType === "touch" ? null : nearest(event);
      if (mark && mark.dataset.cell) lead(mark.dataset.cell);
    });
  }
})();
