"""Tables: nothing is cut off, in a pipe or on a terminal however narrow."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from rich.text import Text

from loraplan.cli import show, terminal
from loraplan.config import parse_config
from loraplan.simulation import GPUReport, simulate_config
from loraplan.validation import GPUVerdict, Interval, Validation

ROWS = 23
"""Lines of a table of simulated GPUs."""


def reports(count: int) -> list[GPUReport]:
    workload = {
        "generate": {"count": 4, "ranks": [8], "total_rate": 2, "input_tokens": 200, "output_tokens": 150},
        "horizon_s": 20,
    }
    config = parse_config({"workload": workload, "fleet": [{"profile": "h100-64gb/llama-3.1-8b", "count": 1}]})
    one = simulate_config(config, slots=4)
    return [replace(one, id=f"gpu-{i}") for i in range(count)]


def use_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return Text.from_ansi(capsys.readouterr().out).plain.rstrip().splitlines()


def test_a_pipe_gets_every_column_of_many_gpus(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    show.simulation(reports(12), detailed=False)
    lines = printed(capsys)
    assert lines[0].split() == [f"gpu-{i}" for i in range(12)]
    assert lines[1].split() == ["profile"] + 12 * ["h100-64gb/llama-3.1-8b"]
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_terminal_gets_as_many_gpus_beside_each_other_as_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    use_terminal(monkeypatch, width)
    show.simulation(reports(12), detailed=False)
    lines = printed(capsys)
    assert max(len(line.rstrip()) for line in lines) <= width
    assert not any("…" in line for line in lines)
    assert re.findall(r"gpu-\d+", " ".join(lines)) == [f"gpu-{i}" for i in range(12)]
    assert " ".join(lines).count("h100-64gb/llama-3.1-8b") == 12
    tables = [line for line in lines if line.startswith("TTFT p50 / p95 / p99 s")]
    assert len(tables) > 1


def test_a_table_with_a_row_per_gpu_continues_below(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = terminal.new_table("GPU", *(f"a figure {i}" for i in range(12)))
    for gpu in range(12):
        table.add_row(f"gpu-{gpu}", *(f"{1000 * gpu + i:,}" for i in range(12)))
    use_terminal(monkeypatch, 80)
    terminal.out(table)
    lines = printed(capsys)
    assert max(len(line) for line in lines) <= 80
    assert not any("…" in line for line in lines)
    for gpu in range(12):
        cells = [cell for line in lines if line.startswith(f"gpu-{gpu} ") for cell in line.split()[1:]]
        assert cells == [f"{1000 * gpu + i:,}" for i in range(12)]


def test_the_verdicts_on_twelve_gpus_fit_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = [1234.5, 17.25, 40.5, 0.25, 0.75, 0.5, 3.0, 120.0, 0.0]
    verdicts = tuple(
        GPUVerdict(f"gpu-{i}", True, False, False, Interval(0.95, 0.85, 1.0), *figures, "adapter slots", 0.0, "steady")
        for i in range(12)
    )
    use_terminal(monkeypatch, 80)
    show.validation(Validation(0, verdicts, (1, 2), 60.0, 0.9), plan_of(12))
    lines = printed(capsys)
    assert not any("…" in line for line in lines)
    text = " ".join(lines)
    for cell in ("not starved (uncertain)", "85.0 % to 100.0 %", "17.2", "adapter slots"):
        assert text.count(cell) == 12


def plan_of(count: int) -> show.Plan:
    """All that printing a validation asks of a plan."""
    return show.Plan.model_construct(gpus=tuple(range(count)))


@pytest.mark.parametrize("width", [20, 40, 80])
def test_words_are_wrapped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int) -> None:
    words = " ".join(f"word{i}" for i in range(40))
    table = terminal.new_table("check", "", "found", numbers=False)
    table.add_row("versions", "[green]ok[/]", words)
    use_terminal(monkeypatch, width)
    terminal.out(table)
    lines = printed(capsys)
    assert max(len(line) for line in lines) <= width
    assert not any("…" in line for line in lines)
    assert re.findall(r"word\d+", " ".join(lines)) == words.split()


def test_a_single_number_wider_than_the_terminal_is_wrapped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = terminal.new_table("", "figure")
    table.add_row("name", "1234567890" * 3)
    use_terminal(monkeypatch, 20)
    terminal.out(table)
    assert re.sub(r"\D", "", "".join(printed(capsys))) == "1234567890" * 3


def test_a_row_has_a_cell_for_each_title() -> None:
    with pytest.raises(ValueError, match="expected 2 cells, got 1"):
        terminal.new_table("a", "b").add_row("1")
