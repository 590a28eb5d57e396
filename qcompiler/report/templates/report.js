"use strict";
(function () {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const byId = (id) => document.getElementById(id);
  const charts = new Map();

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const inBytes = (v) => (v >= 1e6 ? +(v / 1e6).toFixed(2) + " MB" : v >= 1e3 ? +(v / 1e3).toFixed(1) + " kB" : v + " B");
  const inTime = (v) => (v >= 1e3 ? +(v / 1e3).toFixed(2) + " ms" : +v.toFixed(1) + " us");
  const inDecibels = (v) => +v.toFixed(1) + " dB";

  function axis(title, format) {
    return {
      title: { display: Boolean(title), text: title, color: color("--muted") },
      ticks: Object.assign({ color: color("--muted"), maxRotation: 0, autoSkipPadding: 12 }, format && { callback: format }),
      grid: { color: color("--line"), drawTicks: false },
      border: { color: color("--line") },
    };
  }

  function options(yFormat, tooltipTitle) {
    const y = axis("", yFormat);
    const x = axis("layer, in graph order");
    x.grid.display = false;
    return {
      animation: false,
      maintainAspectRatio: false,
      interaction: { mode: "index", intersect: false },
      scales: { x: x, y: y },
      plugins: {
        legend: { align: "start", labels: { color: color("--muted"), boxWidth: 10, boxHeight: 10 } },
        tooltip: {
          callbacks: {
            title: tooltipTitle,
            label: (item) => item.dataset.label + ": " + yFormat(item.raw.y === undefined ? item.raw : item.raw.y),
          },
          filter: (item) => item.raw !== null,
        },
      },
    };
  }

  function draw(id, config) {
    const old = charts.get(id);
    if (old) old.destroy();
    charts.set(id, new Chart(byId(id), config));
  }

  const layerTitle = (items) => (items.length ? data.layers.number[items[0].dataIndex] + "  " + data.layers.name[items[0].dataIndex] : "");

  function bars(label, values, fill, width) {
    return { label: label, data: values, backgroundColor: color(fill), grouped: false, barPercentage: width, categoryPercentage: 1 };
  }

  function drawError() {
    const pick = (wanted) => data.layers.sqnr_db.map((v, i) => (data.layers.integer[i] === wanted ? v : null));
    const sets = [bars("in integers", pick(true), "--accent", 0.85), bars("in float", pick(false), "--quiet", 0.85)];
    const shown = sets.filter((s) => s.data.some((v) => v !== null));
    draw("error-plot", { type: "bar", data: { labels: data.layers.number, datasets: shown }, options: options(inDecibels, layerTitle) });
  }

  function drawPair(id, before, after, format) {
    const sets = [bars("after", after, "--accent", 0.5), bars("before", before, "--quiet", 0.95)];
    draw(id, { type: "bar", data: { labels: data.layers.number, datasets: sets }, options: options(format, layerTitle) });
  }

  const clipLines = {
    id: "clip-lines",
    afterDatasetsDraw(chart, _, settings) {
      const area = chart.chartArea;
      const pen = chart.ctx;
      pen.save();
      pen.strokeStyle = settings.stroke;
      pen.lineWidth = 2;
      pen.setLineDash([5, 4]);
      for (const value of settings.at || []) {
        const x = chart.scales.x.getPixelForValue(value);
        pen.beginPath();
        pen.moveTo(x, area.top);
        pen.lineTo(x, area.bottom);
        pen.stroke();
      }
      pen.restore();
    },
  };

  function drawHistogram() {
    const chosen = data.histograms[Number(byId("histogram-choice").value)];
    const width = (chosen.high - chosen.low) / chosen.counts.length || 1;
    const points = chosen.counts.map((n, i) => ({ x: chosen.low + (i + 0.5) * width, y: n || null }));
    const clip = chosen.clip || [];
    const settings = options((v) => v.toLocaleString("en-US"), (items) => (items.length ? "near " + items[0].raw.x.toPrecision(3) : ""));
    settings.scales.x = Object.assign(axis("value"), {
      type: "linear", offset: false, min: Math.min(chosen.low, ...clip), max: Math.max(chosen.high, ...clip),
    });
    settings.scales.x.grid.display = false;
    settings.scales.y.type = "logarithmic";
    settings.scales.y.min = 0.5;
    settings.scales.y.title = { display: true, text: "values, logarithmic", color: color("--muted") };
    settings.plugins.legend.display = false;
    settings.plugins["clip-lines"] = { at: clip, stroke: color("--bad") };
    const fill = { data: points, label: "values", backgroundColor: color("--accent"), barPercentage: 1, categoryPercentage: 0.95 };
    draw("histogram-plot", { type: "bar", data: { datasets: [fill] }, options: settings, plugins: [clipLines] });
    byId("histogram-clip").textContent = clip.length
      ? "Dashed lines: clip range " + clip.map((v) => +v.toPrecision(4)).join(" .. ") + "."
      : "Not clipped: this value stays in float.";
  }

  function drawFrontier() {
    const place = (p) => ({ x: p.bytes, y: p.loss || null, bits: p.bits });
    const chosen = place(data.frontier.chosen);
    const inLoss = (v) => (v === 0 ? "0" : v.toPrecision(2));
    const settings = options(inLoss, (items) => (items.length ? inBytes(items[0].raw.x) + ", " + items[0].raw.bits.toFixed(2) + " bits a weight" : ""));
    settings.interaction = { mode: "nearest", axis: "xy", intersect: false };
    settings.scales.x = Object.assign(axis("predicted size of the file", inBytes), { type: "linear" });
    settings.scales.x.grid.display = false;
    settings.scales.y.type = "logarithmic";
    settings.scales.y.title = { display: true, text: "predicted loss, logarithmic", color: color("--muted") };
    const line = { label: "frontier", data: data.frontier.points.map(place), borderColor: color("--accent"), backgroundColor: color("--accent"), showLine: true, borderWidth: 1.5, pointRadius: 1.5, order: 2 };
    const mark = { label: "written", data: [chosen], borderColor: color("--bad"), backgroundColor: color("--bad"), pointRadius: 6, pointStyle: "rectRot", order: 1 };
    draw("frontier-plot", { type: "scatter", data: { datasets: [line, mark] }, options: settings });
  }

  function drawAll() {
    Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
    if (byId("error-plot")) drawError();
    if (byId("bytes-plot")) drawPair("bytes-plot", data.layers.bytes_before, data.layers.bytes_after, inBytes);
    if (byId("time-plot")) drawPair("time-plot", data.layers.before_us, data.layers.after_us, inTime);
    if (byId("frontier-plot")) drawFrontier();
    if (byId("histogram-plot")) drawHistogram();
  }

  function filterRows() {
    const wanted = byId("layer-filter").value.toLowerCase();
    for (const row of document.querySelectorAll("#layers-table tbody tr")) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
    }
  }

  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("beforeprint", drawAll);
  addEventListener("afterprint", drawAll);
  if (byId("histogram-choice")) byId("histogram-choice").addEventListener("change", drawHistogram);
  if (byId("layer-filter")) byId("layer-filter").addEventListener("input", filterRows);
})();
