"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const steps = data.items.flatMap((_, item) => data.questions.map((question) => ({ item, question })));
const store = `emu-edit-rate-${data.page}`;
let answers = {};
try { answers = JSON.parse(localStorage.getItem(store)) || {}; } catch { answers = {}; }
const name = (step) => `${step.item} ${step.question.name}`;
const isWhole = (step) => Boolean(answers[name(step)]?.choice && answers[name(step)].reasons.length);
let now = Math.max(0, steps.findIndex((step) => !isWhole(step)));
let isEnd = steps.every(isWhole);
let shown = null;

function keep() {
  try { localStorage.setItem(store, JSON.stringify(answers)); } catch { /* kept until the page is closed */ }
}

function media(file, side) {
  const moves = data.moving.some((ending) => file.endsWith(ending));
  const made = document.createElement(moves ? "video" : "img");
  if (moves) Object.assign(made, { autoplay: true, loop: true, muted: true, playsInline: true });
  else made.alt = `the ${side} one`;
  made.src = file;
  return made;
}

function showPair(item) {
  if (shown === item) return;
  shown = item;
  ["left", "right"].forEach((side, i) => {
    const label = document.createElement("span");
    label.textContent = side === "left" ? "The left one" : "The right one";
    at(side).replaceChildren(media(data.items[item].files[i], side), label);
  });
}

function showReasons(step, ticked) {
  const lines = step.question.reasons.map((reason, i) => {
    const line = document.createElement("label"), box = document.createElement("input");
    const key = document.createElement("kbd");
    box.type = "checkbox";
    box.checked = ticked.includes(reason);
    box.addEventListener("change", () => tick(reason));
    key.textContent = i + 1;
    line.append(box, key, reason);
    return line;
  });
  const box = document.querySelector("fieldset");
  box.replaceChildren(box.querySelector("legend"), ...lines);
}

function show() {
  const done = steps.filter(isWhole).length;
  at("bar").value = done / steps.length;
  at("count").textContent = `${done} of ${steps.length}`;
  at("rating").hidden = isEnd;
  at("end").hidden = !isEnd;
  if (isEnd) {
    at("done").textContent = `All ${steps.length} questions are answered.`;
    return;
  }
  const step = steps[now], answer = answers[name(step)] || { reasons: [] };
  at("caption").textContent = `\u201c${data.items[step.item].caption}\u201d`;
  at("asked").textContent = step.question.asked;
  showPair(step.item);
  for (const side of ["left", "right"]) at(side).setAttribute("aria-pressed", String(answer.choice === side));
  showReasons(step, answer.reasons);
  at("back").disabled = now === 0;
  at("next").disabled = !isWhole(step);
}

function change(values) {
  const step = steps[now];
  answers[name(step)] = { reasons: [], ...answers[name(step)], ...values, item: step.item, question: step.question.name };
  keep();
  show();
}

function tick(reason) {
  const ticked = answers[name(steps[now])]?.reasons || [];
  change({ reasons: ticked.includes(reason) ? ticked.filter((one) => one !== reason) : [...ticked, reason] });
}

function go(by) {
  if (by > 0 && !isWhole(steps[now])) return;
  if (by > 0 && now === steps.length - 1) {
    const open = steps.findIndex((step) => !isWhole(step));
    if (open < 0) isEnd = true; else now = open;
  } else now = Math.max(0, now + by);
  show();
}

function download() {
  const given = steps.filter(isWhole).map((step) => answers[name(step)]);
  const told = { version: 1, page: data.page, rater: at("rater").value.trim() || "unnamed", answers: given };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(told, null, 1)], { type: "application/json" }));
  link.download = `answers-${told.rater.replace(/[^\w-]+/g, "_")}.json`;
  link.click();
}

at("left").addEventListener("click", () => change({ choice: "left" }));
at("right").addEventListener("click", () => change({ choice: "right" }));
at("next").addEventListener("click", () => go(1));
at("back").addEventListener("click", () => go(-1));
at("again").addEventListener("click", () => { isEnd = false; now = 0; show(); });
at("download").addEventListener("click", download);
document.addEventListener("keydown", (event) => {
  if (isEnd || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Enter" && event.target.closest?.(".steps")) return; // a button in focus acts itself
  const reason = steps[now].question.reasons[Number(event.key) - 1];
  if (event.key === "ArrowLeft") change({ choice: "left" });
  else if (event.key === "ArrowRight") change({ choice: "right" });
  else if (event.key === "Enter") go(1);
  else if (event.key === "Backspace") go(-1);
  else if (reason) tick(reason);
  else return;
  event.preventDefault();
});
show();
