"use strict";
// Hover texts of the figures' marks, and the legend that lights up a group. Without it the page still says all.
const { clusters, marks } = JSON.parse(document.getElementById("tips").textContent);
const tip = document.getElementById("tip");
const [title, subtitle] = tip.children;
const NEAR_PX = 14;

function show(event, mark) {
  const [id, label] = clusters[mark[1]];
  title.textContent = mark.length > 2 ? mark[0] : label;
  subtitle.textContent = mark.length > 2 ? `${label} · ${id}` : `${id} · ${mark[0]}`;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.min(Math.max(event.clientX - width / 2, 8), innerWidth - width - 8);
  const above = event.clientY - height - 16;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 8 ? above : event.clientY + 20}px`;
}

function hide() {
  tip.hidden = true;
}

addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); }); // it covers what lies behind it

for (const group of document.querySelectorAll("[data-tips]:not([data-tips=map])")) {
  const texts = marks[group.dataset.tips];
  const bars = [...group.querySelectorAll("use, path")].filter((bar) => !bar.closest("defs"));
  bars.forEach((bar, n) => bar.addEventListener("pointermove", (event) => show(event, texts[n])));
  group.addEventListener("pointerleave", hide);
}

const map = document.querySelector(".map");
if (map) {
  const points = [...map.querySelectorAll("[data-tips=map] use")];
  const places = points.map((point) => [point.x.baseVal.value, point.y.baseVal.value]);
  const buttons = [...document.querySelectorAll("[data-group]")];
  let here = -1;
  let pressed = -1;

  const mark = (n) => {
    if (here >= 0) points[here].classList.remove("here");
    here = n;
    if (here >= 0) points[here].classList.add("here");
  };

  const nearest = (event) => {
    const svg = map.querySelector("svg");
    const scale = svg.viewBox.baseVal.width / svg.getBoundingClientRect().width;
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    let best = -1;
    let least = (NEAR_PX * scale) ** 2;
    places.forEach(([x, y], n) => {
      const distance = (x - at.x) ** 2 + (y - at.y) ** 2;
      if (distance < least && (pressed < 0 || marks.map[n][2] === pressed)) [best, least] = [n, distance];
    });
    return best;
  };

  map.addEventListener("pointermove", (event) => {
    mark(nearest(event));
    if (here >= 0) show(event, marks.map[here]);
    else hide();
  });
  map.addEventListener("pointerleave", () => { mark(-1); hide(); });
  map.addEventListener("click", (event) => {
    const n = nearest(event);
    const card = n >= 0 && document.getElementById(clusters[marks.map[n][1]][0]);
    if (card && event.pointerType !== "touch") location.hash = card.id;
  });

  const light = (group) => {
    map.classList.toggle("chosen", group >= 0);
    points.forEach((point, n) => point.classList.toggle("in", marks.map[n][2] === group));
  };
  buttons.forEach((button, group) => {
    button.addEventListener("pointerenter", () => light(group));
    button.addEventListener("pointerleave", () => light(pressed));
    button.addEventListener("click", () => {
      pressed = pressed === group ? -1 : group;
      buttons.forEach((other, n) => other.setAttribute("aria-pressed", String(n === pressed)));
      light(pressed);
    });
  });
}

document.body.dataset.ready = "true";
