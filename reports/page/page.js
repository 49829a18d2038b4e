// Sorts tables by a click on a head, filters rows by words, and shows the policy of the point under the cursor.
"use strict";

const UNITS = { s: 1, min: 60, h: 3600, B: 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30 };

// The number that a cell begins with: "−1.25 [...]", "< 0.0001", "1 min 05 s" in seconds, "1.20 MiB" in bytes.
function numberIn(text) {
  const plain = text.replaceAll("\u00a0", " ").replace("−", "-").replace(/^< /, "");
  const parts = [...plain.matchAll(/([\d.]+) (h|min|s|B|KiB|MiB|GiB)(?= |$)/g)];
  if (parts.length && parts[0].index === 0) {
    return parts.reduce((sum, [, number, unit]) => sum + parseFloat(number) * UNITS[unit], 0);
  }
  const found = plain.match(/^[+-]?[\d.,]+/);
  return found ? parseFloat(found[0].replaceAll(",", "")) : null;
}

function sortBy(table, column, head) {
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = (row) => row.children[column].textContent.trim();
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => {
    const [x, y] = [numberIn(key(a)), numberIn(key(b))];
    if (x === null && y === null) return key(a).localeCompare(key(b)) * (down ? -1 : 1);
    if (x === null || y === null) return x === null ? 1 : -1;
    return (x - y) * (down ? -1 : 1);
  });
  table.tBodies[0].append(...rows);
  table.classList.add("sorted");
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    button.addEventListener("click", () => sortBy(table, column, head));
    head.append(button);
  });
}

const field = document.getElementById("filter");
if (field) {
  field.closest("label").hidden = false;
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let kept = 0, all = 0;
    for (const table of document.querySelectorAll(".scroll:not([data-name='']) > table.sortable")) {
      const name = table.closest(".scroll").dataset.name.toLowerCase();
      for (const row of table.tBodies[0].rows) {
        const text = name + " " + row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        kept += !row.hidden;
        all += 1;
      }
    }
    document.getElementById("matches").textContent = words.length ? `${kept} of ${all} rows` : "";
  });
}

for (const figure of document.querySelectorAll(".explorer")) {
  const shown = figure.querySelector(".shown");
  const show = (dot) => {
    const strip = document.getElementById(dot.getAttribute("href").slice(1));
    const title = document.createElement("p");
    title.textContent = dot.querySelector("title").textContent;
    shown.replaceChildren(title);
    if (strip) shown.append(strip.querySelector("svg").cloneNode(true));
    for (const other of figure.querySelectorAll(".dot.on")) other.classList.remove("on");
    dot.classList.add("on");
  };
  for (const dot of figure.querySelectorAll(".dot")) {
    dot.addEventListener("pointerenter", () => show(dot));
    dot.addEventListener("focus", () => show(dot));
  }
}
