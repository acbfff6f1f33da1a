"use strict";
/* Tables sort by the heading that is chosen, and figures enlarge. Without scripts a page lacks nothing else. */

/* The number that a cell begins with, or null. */
const numberOf = (cell) => {
  const text = (cell.firstChild ? cell.firstChild.textContent : "").replace(/about|[,\s<≤≥~(]/g, "").replace("−", "-");
  const value = parseFloat(text);
  if (Number.isNaN(value)) return null;
  const power = text.match(/·10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)/);
  const digits = power ? [...power[1]].map((sign) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹".indexOf(sign)) : [0];
  const size = digits.reduce((sum, digit) => (digit > 0 ? 10 * sum + digit - 1 : sum), 0);
  const unit = /kWh/.test(text) ? 1000 : 1;
  return value * unit * 10 ** (digits[0] === 0 && power ? -size : size);
};

/* Numbers in their order, then texts in theirs; what is no value comes last either way. */
const compare = (one, other, column, sign) => {
  const [a, b] = [numberOf(one.cells[column]), numberOf(other.cells[column])];
  if (a !== null && b !== null) return sign * (a - b);
  if (a !== null || b !== null) return a === null ? 1 : -1;
  return sign * one.cells[column].textContent.localeCompare(other.cells[column].textContent);
};

const onChoice = (element, act) => {
  element.tabIndex = 0;
  element.addEventListener("click", act);
  element.addEventListener("keydown", (event) => {
    if (event.key === "Enter") act();
  });
};

for (const table of document.querySelectorAll("table")) {
  const rows = [...table.tBodies[0].rows].filter((row) => !row.classList.contains("sum"));
  const headings = table.tHead ? [...table.tHead.rows[0].cells] : [];
  if (rows.length < 2) continue;
  headings.forEach((heading, column) => {
    heading.setAttribute("aria-sort", "none");
    heading.title = "sort";
    onChoice(heading, () => {
      const ascending = heading.getAttribute("aria-sort") === "descending";
      headings.forEach((each) => each.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      rows.sort((one, other) => compare(one, other, column, ascending ? 1 : -1));
      table.tBodies[0].prepend(...rows);
    });
  });
}

const dialog = document.createElement("dialog");
const large = document.createElement("img");
dialog.append(large);
document.body.append(dialog);
dialog.addEventListener("click", () => dialog.close());
for (const image of document.querySelectorAll("figure img")) {
  image.title = "enlarge";
  onChoice(image, () => {
    large.src = image.src;
    large.alt = image.alt;
    dialog.showModal();
  });
}
