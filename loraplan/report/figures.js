// Figures of a benchmark.
function profile(parent, rows) {
  const traces = [];
  const ids = unique(rows.filter((row) => known(row.best_value)).map(idOf));
  for (const solver of SOLVERS.filter((name) => chosen.solvers.has(name))) {
    const ratios = ids.map((id) => {
      const mine = rows.filter((row) => row.solver === solver && idOf(row) === id && isPlan(row));
      return mine.length ? mean(mine.map((row) => row.vs_best)) : Infinity;
    }).sort((a, b) => a - b);
    const steps = unique(ratios.filter(Number.isFinite));
    const x = [1, ...steps], y = [1, ...steps].map((s) => (100 * ratios.filter((r) => r <= s * (1 + 1e-6)).length) / Math.max(1, ids.length));
    traces.push({ x: x.map((v) => 100 * (v - 1)), y: y, name: esc(solver), mode: "lines+markers", line: { shape: "hv", color: hue(solver), width: 2.5 }, marker: { symbol: symbol(solver), size: 7 } });
  }
  figure(parent, "profile-figure", "Performance profile: share of instances by distance from the best known plan, a line per solver", traces,
    { xaxis: { title: { text: "% above the best known" }, rangemode: "tozero" }, yaxis: { title: { text: "% of instances" }, range: [0, 104] } });
}

function timing(parent, rows) {
  const traces = SOLVERS.filter((name) => chosen.solvers.has(name)).map((solver) => {
    const mine = rows.filter((row) => row.solver === solver && isPlan(row));
    return { x: mine.map((r) => Math.max(r.solver_s, 1e-3)), y: mine.map((r) => 100 * (r.vs_best - 1)), text: mine.map((r) => esc(idOf(r))), name: esc(solver), mode: "markers",
      marker: { color: hue(solver), symbol: symbol(solver), size: 9, opacity: 0.75 }, hovertemplate: "%{text}<br>%{x:.3g} s, %{y:.3g} % above the best<extra></extra>" };
  });
  figure(parent, "time-figure", "Quality against time: a point per plan", traces,
    { xaxis: { title: { text: "seconds" }, type: "log" }, yaxis: { title: { text: "% above the best known" }, rangemode: "tozero" } });
}

function waste(parent, rows) {
  const mine = rows.filter((row) => row.solver === chosen.asked && isPlan(row));
  const ids = unique(mine.map(idOf)).map((id) => {
    const part = mine.filter((row) => idOf(row) === id);
    return [id, mean(part.map((r) => r.value)), part[0].best_value, part[0].best_bound];
  }).filter((one) => one[1] > one[2] + 1e-9).sort((a, b) => b[1] - b[2] - (a[1] - a[2])).slice(0, 25).reverse();
  if (!ids.length) { parent.append(el("p", { class: "good" }, "Nowhere: none of its plans is worse than the best known.")); return; }
  const open = ids.map((one) => (known(one[3]) ? one[2] - one[3] : 0));
  const traces = [
    { type: "bar", orientation: "h", y: ids.map((o) => esc(o[0])), x: ids.map((o) => o[1] - o[2]), name: "wasted: a better plan is known", marker: { color: css("--r2") }, hovertemplate: "%{y}: %{x:.4g}<extra></extra>" },
    { type: "bar", orientation: "h", y: ids.map((o) => esc(o[0])), x: open, name: "perhaps more: not yet proven", marker: { color: css("--faint"), opacity: 0.5 }, hovertemplate: "%{y}: up to %{x:.4g} more<extra></extra>" },
  ];
  if (!open.some((x) => x > 1e-9)) traces.pop();
  figure(parent, "waste-figure", "What " + chosen.asked + " wastes, by instance", traces,
    { barmode: "stack", height: 110 + 24 * ids.length, xaxis: { title: { text: esc(unitNow()) + " above the best known plan" } }, yaxis: { tickfont: { size: 12 } }, legend: { orientation: "h", y: 1.02, yanchor: "bottom" } });
}

function front(parent, rows) {
  const here = rows.filter((row) => idOf(row) === chosen.instance && isPlan(row));
  const latency = (row) => (known(row.itl_ms) ? row.itl_ms : row.said_itl_ms);
  const traces = SOLVERS.filter((name) => chosen.solvers.has(name)).map((solver) => {
    const mine = here.filter((row) => row.solver === solver);
    return { x: mine.map((r) => r.gpus), y: mine.map(latency), name: esc(solver), mode: "markers", text: mine.map((r) => (known(r.starved) ? r.starved + " GPUs starve" : "")),
      marker: { color: hue(solver), symbol: symbol(solver), size: 12, line: { width: mine.map((r) => (r.starved > 0 ? 2.5 : 0)), color: css("--bad") } }, hovertemplate: "%{x} GPUs, ITL %{y:.4g} ms<br>%{text}<extra></extra>" };
  });
  const best = here.filter((a) => !here.some((b) => b.gpus <= a.gpus && latency(b) <= latency(a) && (b.gpus < a.gpus || latency(b) < latency(a)))).sort((a, b) => a.gpus - b.gpus);
  traces.unshift({ x: best.map((r) => r.gpus), y: best.map(latency), mode: "lines", name: "front", line: { dash: "dot", shape: "hv", color: css("--faint") }, hoverinfo: "skip" });
  figure(parent, "front-figure", "GPUs against latency of the plans of one instance", traces,
    { xaxis: { title: { text: "GPUs" }, dtick: 1 }, yaxis: { title: { text: "ITL, ms" }, rangemode: "tozero" } });
}

function agreement(parent, rows, said, seen, title, factor, line) {
  const plans = rows.filter((row) => isPlan(row) && known(row[said]) && known(row[seen]));
  const top = Math.max(1e-9, ...plans.map((r) => factor * Math.max(r[said], r[seen])));
  const low = line ? Math.min(...plans.map((r) => factor * Math.min(r[said], r[seen])), factor) * 0.98 : 0;
  const traces = SOLVERS.filter((name) => chosen.solvers.has(name)).map((solver) => {
    const mine = plans.filter((row) => row.solver === solver);
    return { x: mine.map((r) => factor * r[said]), y: mine.map((r) => factor * r[seen]), text: mine.map((r) => esc(idOf(r))), name: esc(solver), mode: "markers",
      marker: { color: hue(solver), symbol: symbol(solver), size: 8, opacity: 0.75 }, hovertemplate: "%{text}<br>said %{x:.4g}, seen %{y:.4g}<extra></extra>" };
  });
  traces.push({ x: [low, top], y: [low, top], mode: "lines", name: "as said", line: { dash: "dot", color: css("--faint") }, hoverinfo: "skip" });
  const shapes = line ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: line, y1: line, line: { color: css("--bad"), dash: "dash", width: 1.5 } }] : [];
  figure(parent, said + "-figure", title, traces, { shapes: shapes, xaxis: { title: { text: "said by the oracle" } }, yaxis: { title: { text: "seen in the twin" } } });
}

function course(parent, log, unit) {
  if (!log || log.length < 2) { parent.append(el("p", { class: "faint" }, "The solver found its plan in one go: there is no course to show.")); return; }
  const traces = [
    { x: log.map((e) => e[0]), y: log.map((e) => e[1]), name: "best plan", mode: "lines+markers", line: { shape: "hv", color: css("--r0") } },
    { x: log.map((e) => e[0]), y: log.map((e) => e[2]), name: "proven bound", mode: "lines+markers", line: { shape: "hv", color: css("--r3") } },
  ];
  figure(parent, "course-figure", "Course of the search: best plan and bound over time", traces,
    { xaxis: { title: { text: "seconds" } }, yaxis: { title: { text: esc(unit) } }, height: 300 });
}
