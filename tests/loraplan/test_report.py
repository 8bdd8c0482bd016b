"""The report: what it says, that hostile text stays text, and that a real browser shows it."""

from __future__ import annotations

import json
import re
import shlex
from html import unescape
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.bench_folder import HOSTILE, results_folder
from support.browser import after, browser, run
from support.cli import invoke

from loraplan.plan import read_plan
from loraplan.report import bench_data, page, plan_data
from loraplan.report.answer import answer, in_words


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "results"
    results_folder(path)
    return path


@pytest.fixture(scope="module")
def bench_page(folder: Path) -> Path:
    path = folder.parent / "bench.html"
    path.write_text(page(bench_data(folder)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def plan_page(folder: Path) -> Path:
    plan = next(path for path in sorted((folder / "plans").glob("mine__hot__best_fit*")))
    data, why = plan_data(read_plan(plan), plan, seeds=1)
    assert why == ""
    path = folder.parent / "plan.html"
    path.write_text(page(data), encoding="utf-8")
    return path


def data_of(text: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def made_up(**columns: list[Any]) -> pd.DataFrame:
    count = len(columns["value"])
    same = {"suite": "s", "objective": "gpu_count", "oracle": "fluid", "status": "feasible", "unit": "GPUs"}
    return pd.DataFrame({name: [value] * count for name, value in same.items()} | columns)


def test_the_answer_is_what_is_wasted_and_what_is_proven() -> None:
    table = made_up(
        solver=["greedy", "exact", "greedy", "exact", "greedy"],
        instance=["a", "a", "b", "b", "c"],
        value=[6.0, 4.0, 5.0, 5.0, float("nan")],
        best_value=[4.0, 4.0, 5.0, 5.0, float("nan")],
        best_bound=[4.0, 4.0, 3.0, 3.0, float("nan")],
    )
    found = answer(table)
    assert (found["used"], found["best"], found["wasted"], found["most"]) == (11.0, 9.0, 2.0, 4.0)
    assert (found["instances"], found["of"], found["closed"]) == (2, 3, 1)
    assert found["worst"] == [{"instance": "s/a", "wasted": 2.0}]
    assert in_words(found).startswith("greedy uses 11 GPUs on 2 of 3 instances; 2 of them (18 %) are wasted")
    nothing = answer(table[table["instance"] == "c"])
    assert in_words(nothing) == "greedy found no plan on any of 1 instances."


def test_the_page_needs_nothing_else(bench_page: Path, plan_page: Path) -> None:
    for path in (bench_page, plan_page):
        text = path.read_text(encoding="utf-8")
        assert "Content-Security-Policy" in text
        assert not re.search(r'<(script|link|img|iframe)[^>]*\s(src|href)="?(http|//)', text.partition("<script")[0])
        assert "@@" not in text.partition('id="data"')[0]


def test_hostile_text_is_never_markup(bench_page: Path) -> None:
    text = bench_page.read_text(encoding="utf-8")
    assert HOSTILE not in text
    rows = data_of(text)["rows"]
    assert {row["reason"] for row in rows} >= {HOSTILE}
    assert unescape(text).count(HOSTILE) >= 1
    assert "NaN" not in text.partition('id="data">')[2].partition("</script>")[0]


def test_the_data_are_those_of_the_results(folder: Path, bench_page: Path) -> None:
    data = data_of(bench_page.read_text(encoding="utf-8"))
    assert data["kind"] == "bench"
    assert len(data["rows"]) == 8
    for name, gpus in data["maps"].items():
        plan = read_plan(folder / "plans" / f"{name}.json")
        assert [gpu["adapters"] for gpu in gpus] == [len(gpu.adapters) for gpu in plan.gpus]
        assert [sum(part[2] for part in gpu["parts"]) for gpu in gpus] == [gpu["adapters"] for gpu in gpus]
        assert all(gpu["twin"]["binding"] for gpu in gpus)
    assert any(HOSTILE in shlex.split(one["command"]) for one in data["next"])


def test_the_command_writes_both_pages(folder: Path, tmp_path: Path) -> None:
    plan = next((folder / "plans").glob("mine__hot__best_fit*"))
    for source, name in ((folder, "a.html"), (plan, "b.html")):
        done = invoke("report", source, "-o", tmp_path / name, "--seeds", "0", "--title", "<b>")
        assert done.exit_code == 0, done.stderr
        assert "<title>&lt;b&gt;</title>" in (tmp_path / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("what", "complaint"), [("empty", "there is no bench.json"), ("none.json", "No such file"), ("other", "report")]
)
def test_what_is_no_result_is_told(tmp_path: Path, what: str, complaint: str) -> None:
    (tmp_path / "empty").mkdir()
    output = tmp_path / ("missing/report.html" if what == "other" else "report.html")
    done = invoke("report", tmp_path / what, "-o", output)
    assert done.exit_code == 2
    assert complaint in done.stderr


# ---- in a real browser ----


def test_a_browser_shows_the_pages_without_a_complaint(bench_page: Path, plan_page: Path) -> None:
    browser()
    for path, sections in ((bench_page, 9), (plan_page, 5)):
        text, console = run(path, "--dump-dom")
        assert console == []
        assert re.findall(r"<title>(.*?)</title>", text) != ["hacked"]
        assert text.count('<section class="card"') >= sections
        assert '<html lang="en" data-drawn="1"' in text
    assert text.count('role="img"') >= 2


def test_filters_work(bench_page: Path) -> None:
    browser()
    script = """
(async () => {
const wait = () => new Promise((done) => setTimeout(done, 500));
const told = (name, value) => document.body.setAttribute("data-" + name, value);
const boxes = (name) => [...document.querySelectorAll(`input[data-filter=${name}]`)];
const rows = (id) => document.querySelector(`#${id} tbody`).rows.length;
  await wait();
  boxes("solvers").find((box) => box.value === "best_fit").click();
  await wait(); told("one", rows("overview"));
  for (const box of boxes("suites")) if (box.value !== "tiny") box.click();
  await wait(); told("rows", rows("instances"));
  boxes("suites")[0].click();
  await wait(); told("empty", document.querySelectorAll("#main .js-plotly-plot").length);
})();
"""
    text, console = after(bench_page, script)
    assert console == []
    found = dict(re.findall(r'data-(one|rows|empty)="(\d+)"', text))
    assert found == {"one": "1", "rows": "1", "empty": "0"}
    assert "tick a suite and a solver" in text


@pytest.mark.slow
def test_the_list_of_adapters_can_be_searched(plan_page: Path) -> None:
    browser()
    script = (
        "const s=document.getElementById('search'); s.value='GPU-0'; s.dispatchEvent(new Event('input'));"
        "document.body.setAttribute('data-found', document.querySelector('#adapters tbody').rows.length);"
    )
    text, console = after(plan_page, script)
    assert console == []
    data = data_of(plan_page.read_text(encoding="utf-8"))
    assert f'data-found="{sum(gpu == "gpu-0" for _, gpu, *_ in data["adapters"])}"' in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [(), ("--force-dark-mode", "--blink-settings=preferredColorScheme=0")], ids=["light", "dark"]
)
def test_a_screenshot_is_taken(bench_page: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    browser()
    _, console = run(bench_page, f"--screenshot={tmp_path / 'page.png'}", *flags, size=(800, 3000))
    assert console == []
    assert (tmp_path / "page.png").stat().st_size > 50_000


AUDIT = r"""
setTimeout(() => {
const root = document.documentElement, told = (name, value) => document.body.setAttribute("data-" + name, value);
told("wide", root.scrollWidth - root.clientWidth);
const labelled = (n) => n.labels && [...n.labels].some((label) => label.textContent.trim());
const named = (n) => n.getAttribute("aria-label") || n.textContent.trim() || labelled(n);
const controls = [...document.querySelectorAll("input, select, button, [role=img], [role=region]")];
told("nameless", controls.filter((n) => !n.closest(".plot-container") && !named(n)).length);
const part = (x) => (x / 255 <= 0.03928 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4);
const light = (c) => { const [r, g, b] = c.match(/\d+/g).map(part); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const card = light(getComputedStyle(document.querySelector(".card")).backgroundColor);
const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
const contrast = (n) => ratio(light(getComputedStyle(n).color), card);
const texts = [...document.querySelectorAll(".card p, .card td, .card .bad, .card .good, .card .what, .says")];
told("low", texts.filter((n) => contrast(n) < 4.5).length);
}, 1000);
""".replace("\\\\", "\\")


@pytest.mark.slow
def test_it_fits_a_phone_and_the_keyboard(bench_page: Path, plan_page: Path) -> None:
    """Nothing is wider than the window but what scrolls by itself; every control has a name; contrast is enough."""
    browser()
    script = AUDIT
    for path in (bench_page, plan_page):
        changed = path.with_name(f"phone-{path.name}")
        changed.write_text(path.read_text(encoding="utf-8").replace("</body>", f"<script>{script}</script></body>"))
        text, console = run(changed, "--dump-dom", size=(500, 900))
        assert console == []
        assert dict(re.findall(r'data-(wide|nameless|low)="(\d+)"', text)) == {"wide": "0", "nameless": "0", "low": "0"}
