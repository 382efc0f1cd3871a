"use strict";
(() => {
  const data = JSON.parse(document.getElementById("what-if-data").textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const dataset = bytes(data.dataset), other = bytes(data.other);
  const levels = data.scores.map((s) => bytes(s.levels));
  const sliders = data.scores.map((s, i) => document.getElementById(`what-if-${i}`));
  const words = (n) => Math.round(n).toLocaleString("en").replaceAll(",", "\u2009");
  const update = () => {
    const at = sliders.map((s) => Number(s.value));
    const kept = new Array(data.datasets.length).fill(0), alone = new Array(at.length).fill(0);
    let total = 0;
    for (let row = 0; row < dataset.length; row++) {
      let fails = other[row] ? 2 : 0, which = -1;
      for (let i = 0; i < at.length && fails < 2; i++) {
        const level = levels[i][row], score = data.scores[i];
        if (level === 254 || (level === 255 && score.null_passes)) continue;
        if (level < 254 && (score.keep === "min" ? level >= at[i] : level <= at[i])) continue;
        fails++; which = i;
      }
      if (fails === 0) { kept[dataset[row]]++; total++; } else if (fails === 1) alone[which]++;
    }
    data.scores.forEach((s, i) => {
      const value = at[i] === s.start ? s.threshold : s.low + (s.high - s.low) * at[i] / data.levels;
      document.getElementById(`what-if-value-${i}`).textContent = String(Number(value.toPrecision(3)));
      document.getElementById(`what-if-alone-${i}`).textContent = words(alone[i] * data.scale);
      const x = String((at[i] + (s.keep === "max" ? 1 : 0)) / data.levels * 1000);
      const line = document.getElementById(`what-if-line-${i}`);
      line.setAttribute("x1", x); line.setAttribute("x2", x);
    });
    document.getElementById("what-if-total").textContent = words(total * data.scale);
    kept.forEach((n, i) => { document.getElementById(`what-if-set-${i}`).textContent = words(n * data.scale); });
  };
  sliders.forEach((s) => s.addEventListener("input", update));
  document.getElementById("what-if-reset").addEventListener("click", () => {
    sliders.forEach((s, i) => { s.value = data.scores[i].start; }); update();
  });
  document.querySelectorAll(".needs-script").forEach((e) => { e.hidden = false; });
  update();
})();
