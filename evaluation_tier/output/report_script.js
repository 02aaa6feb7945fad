// Sorts a table of the class "sortable" by the column whose heading is pressed, and opens what is folded when the page
// is printed. Without this script, the page is complete.
function sortKey(text, isNumber) {
  if (!isNumber) return text;
  const number = parseFloat(text.replace(/^</, "").replace(/,(?=\d{3})/g, ""));
  return Number.isNaN(number) ? null : number; // null: not measured
}

function compareKeys(first, second, sign) {
  if (first === null || second === null) return (first === null) - (second === null); // last in both directions
  return sign * (typeof first === "number" ? first - second : first.localeCompare(second));
}

function sortRows(table, column) {
  const heading = table.tHead.rows[0].cells[column];
  const isNumber = heading.classList.contains("r"); // numbers are aligned to the right
  const before = heading.getAttribute("aria-sort");
  const descending = before === null ? isNumber : before === "ascending"; // the highest numbers first
  for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const rows = Array.from(table.tBodies[0].rows);
  const summary = rows.filter((row) => row.classList.contains("summary")); // means stay below
  const others = rows.filter((row) => !row.classList.contains("summary"));
  const keyed = others.map((row) => [sortKey(row.cells[column].textContent, isNumber), row]);
  keyed.sort((first, second) => compareKeys(first[0], second[0], descending ? -1 : 1));
  table.tBodies[0].append(...keyed.map((pair) => pair[1]), ...summary);
}

function makeSortable(table) {
  Array.from(table.tHead.rows[0].cells).forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => sortRows(table, column));
  });
}

if (typeof document !== "undefined") {
  document.querySelectorAll("table.sortable").forEach(makeSortable);
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((part) => { part.open = true; });
  });
}
