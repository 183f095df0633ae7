"use strict";
for (const figure of document.querySelectorAll("figure[data-frames]")) {
  const frames = JSON.parse(figure.dataset.frames);
  const control = figure.querySelector(".slider");
  const input = control.querySelector("input");
  const button = control.querySelector("button");
  const caption = control.querySelector("span");
  const descriptions = figure.querySelectorAll("desc");
  const paths = [...figure.querySelectorAll("path[data-series]")].map((path) => ({
    path,
    series: Number(path.dataset.series),
    box: path.ownerSVGElement.dataset.box.split(" ").map(Number),
    area: path.classList.contains("area"),
  }));
  const last = frames.labels.length - 1;
  let timer = 0;

  const draw = (curve, [left, right, top, bottom], area) => {
    if (!curve.length) return "";
    const x = (unit) => (left + (unit / 1000) * (right - left)).toFixed(1);
    const y = (unit) => (bottom - (unit / 1000) * (bottom - top)).toFixed(1);
    const places = [];
    for (let at = 0; at < curve.length; at += 2) places.push(x(curve[at]) + " " + y(curve[at + 1]));
    const path = "M" + places.join("L");
    return area ? path + "L" + x(curve[curve.length - 2]) + " " + bottom + "L" + x(curve[0]) + " " + bottom + "Z" : path;
  };
  const show = (index) => {
    const label = frames.labels[index];
    for (const { path, series, box, area } of paths) path.setAttribute("d", draw(frames.curves[index][series], box, area));
    for (const description of descriptions) description.textContent = "At " + label + ": " + frames.words[index] + ".";
    input.setAttribute("aria-valuetext", label + ": " + frames.words[index]);
    caption.textContent = label;
  };
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    button.textContent = "Play";
  };
  const advance = () => {
    if (Number(input.value) >= last) return stop();
    input.value = Number(input.value) + 1;
    show(Number(input.value));
  };

  input.max = last;
  input.value = last;
  input.addEventListener("input", () => {
    stop();
    show(Number(input.value));
  });
  button.addEventListener("click", () => {
    if (timer) return stop();
    if (Number(input.value) >= last) input.value = 0;
    show(Number(input.value));
    button.textContent = "Stop";
    timer = setInterval(advance, 140);
  });
  control.hidden = false;
  show(last);
}
