// Order and choose the cards of the page of results; without this script they are all there, in the order they were chosen.
"use strict";
const list = document.getElementById("edits");
const order = document.getElementById("order");
const part = document.getElementById("part");
const cards = Array.from(list.children, (card) => ({
  card,
  task: card.dataset.task,
  blocks: JSON.parse(card.dataset.blocks),
  scores: JSON.parse(card.dataset.scores),
}));

function belongs(item, [kind, name]) {
  if (kind === "task") return item.task === name;
  if (kind === "block") return item.blocks.includes(name);
  return true;
}

function show() {
  const [metric, sign] = JSON.parse(order.value);
  const chosen = JSON.parse(part.value);
  const value = (item) => (metric in item.scores ? sign * item.scores[metric] : Infinity);
  const sorted = [...cards];
  if (metric) sorted.sort((a, b) => value(a) - value(b) || 0); // Infinity - Infinity is no number
  list.append(...sorted.map((item) => item.card));
  let count = 0;
  for (const item of cards) {
    item.card.hidden = !belongs(item, chosen);
    count += item.card.hidden ? 0 : 1;
    for (const score of item.card.querySelectorAll("[data-metric]"))
      score.classList.toggle("sorted", score.dataset.metric === metric);
  }
  document.getElementById("count").textContent = `${count} ${list.dataset.noun}${count === 1 ? "" : "s"}`;
}

order.addEventListener("change", show);
part.addEventListener("change", show);
document.getElementById("choice").hidden = false;
show(); // a reloaded page keeps what was chosen
