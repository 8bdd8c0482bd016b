// Sections of the page, and drawing all of them anew when a filter or the colour scheme changes.
function answer(main, rows) {
  const part = card("answer", "How much is wasted, where, and what is proven?");
  const unit = unitNow(), mine = rows.filter((row) => row.solver === chosen.asked && isPlan(row));
  const all = unique(rows.map(idOf)), ids = unique(mine.map(idOf));
  const each = ids.map((id) => { const r = mine.filter((row) => idOf(row) === id); return { id: id, suite: r[0].suite, used: mean(r.map((x) => x.value)), best: r[0].best_value, bound: r[0].best_bound }; });
  const used = sum(each.map((e) => e.used)), best = sum(each.map((e) => e.best)), lost = used - best;
  const closed = each.filter((e) => known(e.bound) && e.best <= e.bound * (1 + 1e-6)).length;
  const bounded = each.length && each.every((e) => known(e.bound)), most = used - sum(each.map((e) => e.bound || 0));
  part.append(el("div", { class: "row" }, pick("Solver", SOLVERS, chosen.asked, (v) => { chosen.asked = v; draw(); }, "asked")));
  if (!each.length) {
    part.append(el("p", { class: "answer" }, "No plan of " + chosen.asked + " is among what is shown."));
    main.append(part);
    return;
  }
  const rest = best > 0 ? " (" + num((100 * lost) / best, 0) + " % more than needed)" : "";
  part.append(el("p", { class: "answer" }, chosen.asked + " uses " + num(used) + " " + unit + " where " + num(best) + " do: ",
    el("b", { class: lost > 1e-9 ? "" : "good" }, lost > 1e-9 ? num(lost) + " wasted" + rest : "nothing wasted"), "."));
  const tested = mine.filter((r) => known(r.starved));
  const bySuite = unique(each.map((e) => e.suite)).map((s) => [s, sum(each.filter((e) => e.suite === s).map((e) => e.used - e.best))]).sort((a, b) => b[1] - a[1]);
  const worst = [...each].sort((a, b) => b.used - b.best - (a.used - a.best))[0];
  const starved = tested.filter((r) => r.starved > 0).length;
  const better = each.filter((e) => e.used > e.best + 1e-9).map((e) => rows.filter((r) => idOf(r) === e.id && isPlan(r) && r.value < e.used - 1e-9 && known(r.starved))).filter((list) => list.length);
  const fragile = better.filter((list) => list.every((r) => r.starved > 0)).length;
  if (fragile) part.append(el("p", { class: "bad" }, "Mind the oracle: on " + fragile + " of " + better.length + " of these instances every better plan starves a GPU in the digital twin. Plans that hold come from an oracle with a margin (--oracle surrogate) or with --verify twin."));
  const holds = each.map((e) => [mean(mine.filter((r) => idOf(r) === e.id && r.starved === 0).map((r) => r.value)), Math.min(...rows.filter((r) => idOf(r) === e.id && isPlan(r) && r.starved === 0).map((r) => r.value))]).filter((pair) => known(pair[0]));
  part.append(el("div", { class: "tiles" },
    tile(num(lost) + " " + unit, "certainly wasted by the same oracle: plans are known that need so much less", lost > 1e-9 ? "bad" : "good"),
    tested.length ? tile(num(sum(holds.map((pair) => pair[0] - pair[1]))) + " " + unit, "wasted if only plans count that hold in the digital twin: no GPU of them starves (" + holds.length + " of its " + each.length + " do)") : null,
    tile(bounded ? "at most " + num(most) : closed + " of " + each.length, bounded ? "could be saved at all: no plan goes below the proven bounds; the best plan is proven optimal on " + closed + " of " + each.length + " instances" : "instances on which the best plan is proven optimal; elsewhere more may be wasted", closed === each.length ? "good" : ""),
    tile(worst && worst.used > worst.best ? "+" + num(worst.used - worst.best) : "0", "most on one instance: " + (worst ? worst.id : "–") + (bySuite.length > 1 ? "; by suite: " + bySuite.map((s) => s[0] + " " + num(s[1])).join(", ") : "")),
    tile(tested.length ? starved + " of " + tested.length : "–", "of its plans starve a GPU in the digital twin, on seeds that no oracle has seen", starved ? "bad" : "good"),
    tile(ids.length + " of " + all.length, "instances for which it found a plan", ids.length < all.length ? "bad" : "good")));
  const box = el("div", {});
  part.append(el("h3", {}, "Where"), box);
  main.append(part);
  waste(box, rows);
}

function overview(main, rows) {
  const part = card("overview", "Solvers side by side", "Sums and means over the instances that are shown; geometric mean of the ratios to the best known plan.");
  const list = SOLVERS.filter((name) => chosen.solvers.has(name)).map((solver) => {
    const mine = rows.filter((r) => r.solver === solver), plans = mine.filter(isPlan), twin = plans.filter((r) => known(r.starved));
    const gaps = plans.filter((r) => known(r.best_bound)).map((r) => (r.value - r.best_bound) / r.value);
    const optimal = plans.filter((r) => known(r.best_bound) && r.value <= r.best_bound * (1 + 1e-6)).length;
    const seconds = plans.map((r) => r.solver_s).sort((a, b) => a - b), logs = mean(plans.map((r) => Math.log(r.vs_best)));
    return [solver, plans.length + " of " + mine.length, optimal, num(sum(plans.map((r) => r.value))), num(sum(plans.map((r) => r.value - r.best_value))), known(logs) ? num(Math.exp(logs), 3) : "–", percent(mean(gaps)),
      num(seconds[Math.floor(seconds.length / 2)], 3), num(seconds[seconds.length - 1], 2), twin.length ? twin.filter((r) => r.starved > 0).length + " of " + twin.length : "–", twin.length ? percent(Math.min(...twin.map((r) => r.served_min))) : "–", num(mean(twin.map((r) => r.itl_ms)), 1)];
  });
  part.append(table(["solver", "plans", "optimal", unitNow() || "value", "wasted", "× best", "gap to bound", "median s", "longest s", "plans that starve", "worst served", "ITL ms"], list, { label: "Solvers side by side" }));
  const told = DATA.pairs.filter((p) => p.objective + " on " + p.oracle === chosen.goal && chosen.solvers.has(p.a) && chosen.solvers.has(p.b));
  if (told.length) {
    part.append(el("h3", {}, "In pairs, over all instances that both solved"), table(["pair", "cost ratio", "95 % interval", "better", "equal", "worse", "p (Wilcoxon)", "verdict"],
      told.map((p) => [p.a + " / " + p.b, num(p.ratio.mean, 3), num(p.ratio.low, 3) + " to " + num(p.ratio.high, 3), p.wins, p.ties, p.losses, known(p.p) ? (p.p < 0.001 ? "< 0.001" : num(p.p, 3)) : "–", p.a + " is " + p.verdict]), { label: "Paired comparison" }));
  }
  main.append(part);
}

function instances(main, rows) {
  const names = SOLVERS.filter((name) => chosen.solvers.has(name)), unit = unitNow();
  const part = card("instances", (unit || "Value") + " and gap, solver by solver and instance by instance", "Green: nobody is better. +n: above the best known plan. ✓: proven optimal. Gap: best known plan to proven bound.");
  const list = unique(rows.map(idOf)).map((id) => {
    const here = rows.filter((r) => idOf(r) === id), first = here[0], closed = known(first.best_bound) && first.best_value <= first.best_bound * (1 + 1e-6);
    return [id, num(first.adapters), el("td", {}, num(first.best_value), closed ? " ✓" : ""), known(first.best_bound) ? num(first.best_bound) : "–", known(first.best_bound) && first.best_value ? percent(Math.max(0, first.best_value - first.best_bound) / first.best_value) : "–", ...names.map((name) => {
      const mine = here.filter((r) => r.solver === name), plans = mine.filter(isPlan);
      if (!plans.length) return el("td", { title: mine.length ? mine[0].reason : "" }, el("span", { class: "none" }, mine.length ? mine[0].status : "–"));
      const value = mean(plans.map((r) => r.value)), over = value - first.best_value;
      return el("td", { class: over > 1e-9 ? "over" : "best" }, num(value), over > 1e-9 ? el("span", { class: "plus" }, " +" + num(over)) : null);
    })];
  });
  part.append(table(["instance", "adapters", "best known", "bound", "gap", ...names], list, { label: "Value by instance and solver" }));
  main.append(part);
}

function placements(main, key, gpus) {
  const ranks = unique(gpus.flatMap((g) => g.parts.map((p) => p[0]))).sort((a, b) => a - b);
  const shade = (c) => [1, 0.78, 0.55, 0.35][c], tone = (r) => "var(" + HUES[ranks.indexOf(r) % HUES.length] + ")";
  const width = (p) => (chosen.length === "rate" ? p[3] : p[2]), total = (g) => sum(g.parts.map(width)), top = Math.max(1e-12, ...gpus.map(total));
  main.append(el("div", { class: "keys" }, el("span", {}, "rank: "), ranks.map((r) => el("span", { class: "keys" }, el("span", { class: "swatch", style: "background:" + tone(r) }), String(r))),
    el("span", {}, "requests/s of an adapter: "), DATA.classes.map((name, c) => el("span", { class: "keys" }, el("span", { class: "swatch", style: "background:var(--r0);opacity:" + shade(c) }), name))));
  const box = el("div", { class: "map", tabindex: "0", role: "region", "aria-label": "Placement map" });
  const kinds = unique(gpus.map((g) => g.profile)).length;
  main.append(box);
  for (const gpu of gpus) {
    const parts = gpu.parts.map((p) => el("span", { style: "width:" + (100 * width(p)) / top + "%;background:" + tone(p[0]) + ";opacity:" + shade(p[1]), title: p[2] + " adapters of rank " + p[0] + ", " + DATA.classes[p[1]] + " requests/s each; " + num(p[3]) + " requests/s" }));
    const words = gpu.parts.map((p) => p[2] + " of rank " + p[0] + " at " + DATA.classes[p[1]]).join(", ");
    const seen = gpu.twin;
    box.append(el("div", { class: "gpu" }, el("div", { class: "id" }, gpu.id), el("div", { class: "bar", role: "img", "aria-label": gpu.id + ": " + words }, parts),
      el("div", { class: "says" }, num(gpu.adapters) + " adapters, " + gpu.slots + " slots, " + num(gpu.rate) + " requests/s" + (kinds > 1 ? ", " + gpu.profile : "") + "; said: serves " + percent(gpu.said.served) + ", ITL " + num(gpu.said.itl_ms, 1) + " ms",
        seen ? ["; twin: ", el("b", { class: seen.starved ? "bad" : "good" }, (seen.starved ? "starves, " : "") + "serves " + percent(seen.served)), ", ITL " + num(seen.itl_ms, 1) + " ms, KV " + percent(seen.kv_utilisation, 0) + ", binding: " + seen.binding + ", " + seen.trend] : "")));
  }
}

function lengthPick() {
  return pick("Length of the bars", ["rate", "adapters"], chosen.length, (v) => { chosen.length = v; draw(); }, "length");
}

function look(main, rows) {
  const part = card("look", "One instance from near", "Plans by GPUs and latency (red ring: a GPU starves in the twin), and what each GPU of a plan gets.");
  const ids = unique(rows.map(idOf));
  if (!ids.includes(chosen.instance)) chosen.instance = ids.length ? [...ids].sort((a, b) => over(rows, b) - over(rows, a))[0] : null;
  if (!chosen.instance) return;
  const solvers = rows.filter((r) => idOf(r) === chosen.instance && DATA.maps[r.name]).map((r) => r.solver);
  if (!solvers.includes(chosen.placed)) chosen.placed = solvers.includes(chosen.asked) ? chosen.asked : solvers[0] || null;
  part.append(el("div", { class: "row" }, pick("Instance", ids, chosen.instance, (v) => { chosen.instance = v; draw(); }, "instance")));
  main.append(part);
  front(part, rows);
  const row = rows.find((r) => idOf(r) === chosen.instance && r.solver === chosen.placed && DATA.maps[r.name]);
  if (!row) return;
  part.append(el("h3", {}, "Placement map"), el("div", { class: "row" }, pick("Plan of", unique(solvers), chosen.placed, (v) => { chosen.placed = v; draw(); }, "placed"), lengthPick()));
  placements(part, row.name, DATA.maps[row.name]);
  if (row.log && row.log.length > 1) { part.append(el("h3", {}, "Course of the search")); course(part, row.log, row.unit); }
}
const over = (rows, id) => Math.max(0, ...rows.filter((r) => idOf(r) === id && r.solver === chosen.asked && isPlan(r)).map((r) => r.value - r.best_value));

function failures(main, rows) {
  const bad = rows.filter((row) => !["optimal", "feasible", "infeasible"].includes(row.status));
  if (!bad.length) return;
  const part = card("failures", "Without a plan, or with a wrong one", bad.length + " of " + rows.length + " runs.");
  part.append(table(["instance", "solver", "status", "why"], bad.slice(0, 200).map((r) => [idOf(r), r.solver, r.status, el("td", { class: "long" }, r.reason)]), { words: true, label: "Runs without a plan" }));
  main.append(part);
}

function next(main) {
  const part = card("next", "What next?");
  part.append(el("ol", { class: "next" }, DATA.next.map((one) => {
    const button = el("button", { type: "button" }, "Copy");
    button.addEventListener("click", () => navigator.clipboard.writeText(one.command).then(() => { button.textContent = "Copied"; }, () => { button.textContent = "Select it by hand"; }));
    return el("li", {}, one.why + " ", button, el("code", {}, one.command));
  })));
  main.append(part);
}

function drawBench(main) {
  const rows = rowsNow();
  if (!rows.length) { main.append(el("p", { class: "card" }, "No results are chosen: tick a suite and a solver above.")); return; }
  answer(main, rows); overview(main, rows); instances(main, rows);
  const two = el("div", { class: "two" }), a = card("profile", "Performance profile", "Share of the instances within so much of the best known plan: higher and further left is better."), b = card("time", "Quality against time", "A point per plan: low and left is better.");
  two.append(a, b); main.append(two);
  profile(a, rows); timing(b, rows);
  look(main, rows);
  const pair = el("div", { class: "two" }), c = card("served", "Served fraction: predicted against simulated", "The worst GPU of each plan. Below the dashed line it starves."), d = card("itl", "ITL: predicted against simulated", "Mean over a plan's tokens, ms. On the dotted line the oracle is right.");
  pair.append(c, d); main.append(pair);
  agreement(c, rows, "said_served_min", "served_min", "Served fraction of the worst GPU, said and seen, %", 100, 90);
  agreement(d, rows, "said_itl_ms", "itl_ms", "Inter-token latency, said and seen, ms", 1, 0);
  failures(main, rows); next(main);
}

function drawPlan(main) {
  const plan = DATA.plan, gpus = DATA.maps.plan, part = card("answer", "The plan at a glance");
  const starved = gpus.filter((g) => g.twin && g.twin.starved).length, tested = gpus.some((g) => g.twin);
  part.append(el("p", { class: "answer" }, plan.solver + " places " + num(plan.adapters) + " adapters on " + gpus.length + " GPUs" + (plan.unplaced.length ? " and leaves " + plan.unplaced.length + " out" : "") + ": ",
    el("b", { class: starved || plan.value === null ? "" : "good" }, tested ? (starved ? starved + " starve in the twin" : "none starves in the twin") : plan.status), "."));
  if (plan.reason) part.append(el("p", {}, plan.reason));
  part.append(el("div", { class: "tiles" }, tile(known(plan.value) ? num(plan.value) + " " + plan.unit : "–", plan.objective + ", " + plan.status + " by the " + plan.oracle + " oracle"),
    tile(known(plan.bound) ? num(plan.bound) : "–", known(plan.bound) ? "proven bound: no plan costs less; gap " + percent(plan.gap) : "no bound: this solver proves nothing"),
    tile(tested ? percent(Math.min(...gpus.map((g) => g.twin.served))) : "–", "served by the worst GPU in the twin; it starves below " + percent(plan.limit, 0), starved ? "bad" : "good"), tile(num(plan.seconds, 2) + " s", "to find it")));
  main.append(part);
  const map = card("look", "Placement map", "What each GPU gets, what the oracle says of it, and what the twin saw.");
  map.append(el("div", { class: "row" }, lengthPick()));
  placements(map, "plan", gpus);
  main.append(map);
  const log = card("course", "Course of the search");
  main.append(log); course(log, plan.log, plan.unit);
  const list = card("adapters", "Adapters", "The hottest first."), box = el("div", {}), search = el("input", { type: "search", id: "search", "aria-label": "Find an adapter or a GPU", placeholder: "adapter or GPU" });
  const fill = () => { const found = DATA.adapters.filter((a) => (a[0] + " " + a[1]).toLowerCase().includes(search.value.toLowerCase())); box.replaceChildren(table(["adapter", "GPU", "rank", "requests/s", "share"], found.slice(0, 500).map((a) => [a[0], a[1], a[2], num(a[3], 5), percent(a[4], 0)]), { label: "Adapters" }), el("p", { class: "faint" }, num(found.length) + " found" + (found.length > 500 ? ", 500 shown" : ""))); };
  search.addEventListener("input", fill); list.append(el("div", { class: "row" }, search), box); fill();
  main.append(list); next(main);
}

let waiting = false;
function draw() {
  if (waiting) return;
  waiting = true;
  Promise.allSettled(pending).then(() => { waiting = false; pending = []; drawNow(); });
}
function drawNow() {
  const focus = document.activeElement && document.activeElement.id, top = scrollY, main = $("main");
  main.querySelectorAll(".js-plotly-plot").forEach((node) => Plotly.purge(node));
  main.replaceChildren();
  (DATA.kind === "bench" ? drawBench : drawPlan)(main);
  if (focus && $(focus)) $(focus).focus({ preventScroll: true });
  scrollTo(0, top);
  document.documentElement.setAttribute("data-drawn", String(1 + Number(document.documentElement.getAttribute("data-drawn") || 0)));
}
const made = DATA.made;
$("made").textContent = [(made.dates || []).map((d) => d.slice(0, 10)).filter((d, i, all) => all.indexOf(d) === i).join(" to "), (made.machine || []).join("; "), made.limits ? "time limit " + num(made.limits.time_limit_s) + " s, memory limit " + num(made.limits.memory_gb) + " GB" : ""].filter(Boolean).join(" · ");
$("foot").textContent = "Values, bounds and proofs are with respect to the oracle named; starvation is judged GPU by GPU in the digital twin" + (made.twin_seeds && made.twin_seeds.length ? " on seeds " + made.twin_seeds.join(", ") : "") + ". Nothing here was measured on a real server. " + (made.versions || []).join("; ");
if (DATA.kind === "bench") makeFilters();
draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
