"use strict";
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const source = document.getElementById("specs");
  const { charts, looks, gap } = source ? JSON.parse(source.textContent) : { charts: {}, looks: {}, gap: 0 };
  const axes = {}, narrow = 500, label = 96; // pixels: below `narrow`, names beside an axis get `label`

  const theme = () => {
    const wanted = root.dataset.theme;
    return wanted === "auto" ? (system.matches ? "dark" : "light") : wanted;
  };

  // As many columns as fit; the same rule as vega.fitted in Python.
  const fit = (chart, room) => {
    const spec = structuredClone(chart.spec);
    const panels = spec.facet.sort.length, height = spec.spec.height;
    const fitting = Math.min(panels, Math.max(1, Math.floor(room / (chart.least + chart.margin))));
    const columns = Math.ceil(panels / Math.ceil(panels / fitting));
    const margin = room < narrow ? Math.min(chart.margin, label + 20) : chart.margin;
    const free = Math.max(140, Math.floor(room / columns) - margin - gap);
    const width = chart.square ? Math.min(free, chart.most) : free;
    if (chart.square) spec.spec.height = width;
    else if (!height.step) spec.spec.height = Math.max(height, Math.min(Math.round(0.4 * width), Math.round(1.6 * height)));
    if (spec.facet.header) spec.facet.header.labelLimit = width + gap - 12;
    spec.columns = columns;
    spec.spec.width = width;
    return spec;
  };

  const turn = (spec, axis) => {
    for (const layer of spec.spec.layer) {
      Object.assign(layer.encoding.x, axis);
      if (axis.field !== "round") delete layer.encoding.x.axis.labelExpr;
    }
  };

  const draw = async (place, look) => {
    const name = place.dataset.chart, chart = charts[name], room = place.clientWidth;
    const spec = fit(chart, room), config = structuredClone(looks[look]);
    if (axes[name]) turn(spec, chart.axes[axes[name]]);
    if (room < narrow) config.axisY.labelLimit = label;
    config.legend.columns = Math.max(1, Math.floor(room / 190));
    config.legend.labelLimit = Math.min(260, room - 60);
    const made = { room, look, axis: axes[name] || "" };
    await vegaEmbed(place, spec, { config, renderer: "svg", actions: false, tooltip: { theme: look } });
    Object.assign(place.dataset, made);
  };

  // One after the other, so that the page answers meanwhile.
  let turnNumber = 0;
  const drawAll = async () => {
    const mine = ++turnNumber;
    root.dataset.drawn = "no";
    for (const place of document.querySelectorAll("[data-chart]")) {
      const { room, look, axis } = place.dataset;
      const isFresh = +room === place.clientWidth && look === theme() && axis === (axes[place.dataset.chart] || "");
      if (!isFresh) await draw(place, theme());
      await new Promise((go) => setTimeout(go));
      if (mine !== turnNumber) return;
    }
    root.dataset.drawn = "yes";
  };

  let pause;
  addEventListener("resize", () => { clearTimeout(pause); pause = setTimeout(drawAll, 200); });
  system.addEventListener("change", drawAll);
  addEventListener("beforeprint", () => {
    for (const place of document.querySelectorAll("[data-chart]")) draw(place, "light");
  });
  addEventListener("afterprint", drawAll);

  document.getElementById("theme").addEventListener("change", (event) => {
    root.dataset.theme = event.target.value;
    try { localStorage.setItem("fedkd-theme", event.target.value); } catch { /* private windows have no store */ }
    drawAll();
  });
  for (const choice of document.querySelectorAll("[data-of]")) {
    choice.addEventListener("change", (event) => {
      axes[choice.dataset.of] = event.target.value;
      drawAll();
    });
  }

  try {
    const kept = document.querySelector(`#theme input[value="${localStorage.getItem("fedkd-theme")}"]`);
    if (kept) { kept.checked = true; root.dataset.theme = kept.value; }
  } catch { /* private windows have no store */ }
  drawAll();
})();
