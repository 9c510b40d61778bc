// Sort, filter and download the verdicts; move τ and see what would be allowed.
"use strict";
const UNSAFE = ["DENY", "REFUSE"], FIRST_CHANCE = 3;
const body = document.querySelector("#verdicts tbody");

const cells = (row) => [...row.cells].map((cell) => cell.textContent);
const chances = (row) => cells(row).slice(FIRST_CHANCE).map(Number);
const allowed = (row, threshold) => chances(row)[0] >= Math.max(threshold, ...chances(row).slice(1));

function rates(rows, threshold) {
  const passed = rows.filter((row) => allowed(row, threshold));
  const wrong = passed.filter((row) => UNSAFE.includes(row.dataset.truth));
  const known = rows.length > 0 && rows.every((row) => row.dataset.truth !== "");
  return { passed: passed.length, wrong: known ? wrong.length : null };
}

function drawCurves(rows) {
  const coverage = [], risk = [];
  for (let step = 0; step <= 100; step += 1) {
    const { passed, wrong } = rates(rows, step / 100);
    coverage.push(`${6.4 * step},${172 - 164 * (passed / rows.length)}`);
    if (wrong !== null && passed > 0) risk.push(`${6.4 * step},${172 - 164 * (wrong / passed)}`);
  }
  document.getElementById("coverage").setAttribute("points", coverage.join(" "));
  document.getElementById("risk").setAttribute("points", risk.join(" "));
}

function moveThreshold(rows) {
  const threshold = Number(document.getElementById("threshold").value);
  const { passed, wrong } = rates(rows, threshold), effect = document.getElementById("effect");
  document.getElementById("threshold-value").value = threshold.toFixed(2);
  effect.textContent = `${effect.dataset.allowed}: ${passed} / ${rows.length}`;
  if (wrong !== null) effect.textContent += `; ${wrong} ${effect.dataset.wrong}`;
  for (const end of ["x1", "x2"]) document.getElementById("here").setAttribute(end, 640 * threshold);
}

function sortBy(column, heading) {
  const up = heading.getAttribute("aria-sort") !== "ascending", key = (row) => cells(row)[column];
  const order = column < FIRST_CHANCE ? (a, b) => key(a).localeCompare(key(b)) : (a, b) => key(a) - key(b);
  const sorted = [...body.rows].sort((a, b) => (up ? order(a, b) : order(b, a)));
  for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", up ? "ascending" : "descending");
  body.replaceChildren(...sorted);
}

function download() {
  const names = [...document.querySelectorAll("#verdicts thead th")].map((cell) => cell.textContent);
  const lines = [...body.rows].filter((row) => !row.hidden).map((row) => {
    const values = cells(row).map((value, index) => (index < FIRST_CHANCE ? value : Number(value)));
    return JSON.stringify(Object.fromEntries(names.map((name, index) => [name, values[index]])));
  });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "application/jsonl" }));
  link.download = "verdicts.jsonl";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function readFile(input) {
  const problem = document.getElementById("file-problem"), [file] = input.files;
  problem.hidden = true;
  if (file === undefined) return;
  let why = file.size > Number(input.dataset.most) ? input.dataset.large : "";
  try {
    if (why === "")
      document.getElementById("prompts").value = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    why = input.dataset.bad;
  }
  problem.textContent = why;
  problem.hidden = why === "";
}

const file = document.getElementById("file");
if (file !== null) file.addEventListener("change", () => readFile(file));
if (body !== null) {
  const rows = [...body.rows];
  drawCurves(rows);
  moveThreshold(rows);
  document.getElementById("threshold").addEventListener("input", () => moveThreshold(rows));
  document.getElementById("download").addEventListener("click", download);
  document.getElementById("filter").addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
  document.querySelectorAll("#verdicts thead th").forEach((heading, column) =>
    heading.firstElementChild.addEventListener("click", () => sortBy(column, heading)));
}
