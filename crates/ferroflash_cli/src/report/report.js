"use strict";
// Sorts a table by the column whose heading is pressed; pressed again, the other way round. What was not measured stays last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement;
    const body = heading.closest("table").tBodies[0];
    const column = heading.cellIndex;
    const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
    const key = (row) => {
      const cell = row.cells[column];
      return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
    };
    const missing = (value) => value === "-";
    const compare = (a, b) => {
      if (missing(a) || missing(b)) return missing(a) - missing(b);
      if (typeof a === "number" && typeof b === "number") return direction * (a - b);
      return direction * String(a).localeCompare(String(b));
    };
    const rows = [...body.rows].map((row) => [key(row), row]).sort((a, b) => compare(a[0], b[0]));
    body.append(...rows.map((pair) => pair[1]));
  });
}
// On paper nothing can be unfolded.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((details) => (details.open = true)));
