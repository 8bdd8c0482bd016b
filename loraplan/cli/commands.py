"""The commands."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.suites import suite_entries
from loraplan.cli import doctor as checks
from loraplan.cli import options, show, terminal
from loraplan.cli.bench import bench
from loraplan.cli.calibrate import calibrate
from loraplan.cli.capacity import capacity
from loraplan.cli.check import check
from loraplan.cli.compare import compare
from loraplan.cli.dataset import dataset
from loraplan.cli.evaluate import evaluate_model
from loraplan.cli.explain import explain_file
from loraplan.cli.export import export_plan
from loraplan.cli.fidelity import fidelity
from loraplan.cli.group import ErrorsInOneLine, examples
from loraplan.cli.options import (
    ConfigArgument,
    JSONOption,
    ObjectiveOption,
    OracleOption,
    PlanArgument,
    SeedOption,
    SeedsOption,
    SetOption,
    SolverOption,
    StartOption,
    TimeLimitOption,
    VerifyOption,
)
from loraplan.cli.pareto import pareto
from loraplan.cli.replan import replan
from loraplan.cli.replay import replay_plan
from loraplan.cli.report import report
from loraplan.cli.simulate import simulate
from loraplan.cli.train import train
from loraplan.config import Config, build, load_config
from loraplan.files import require_writable
from loraplan.loss import without
from loraplan.oracle import ORACLES
from loraplan.plan import Plan, read_plan
from loraplan.profiles import PROFILES
from loraplan.registry import Registry
from loraplan.validation import recorded_workload
from loraplan.validation import validate as validate_plan
from objectives import OBJECTIVES
from solvers import SOLVERS

app = typer.Typer(
    cls=ErrorsInOneLine,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Plan which LoRA adapters go on which GPU of a vLLM fleet, and how many adapter slots each server gets.\n\n"
    "Exit codes: 0 done; 1 no feasible plan; 2 bad input; 3 a server failed; 130 interrupted.",
    epilog=examples("solve config.yaml -o plan.json", "validate plan.json", "simulate plan.json --gpu gpu-0"),
)


class Listed(StrEnum):
    """What `loraplan list` lists."""

    solvers = "solvers"
    objectives = "objectives"
    oracles = "oracles"
    profiles = "profiles"
    suites = "suites"


class Schema(StrEnum):
    """What `loraplan schema` describes."""

    plan = "plan"
    config = "config"


@app.command(
    epilog=examples(
        "solve config.yaml -o plan.json", "solve config.yaml --solver best_fit --set fleet.0.count=8 --time-limit 60"
    )
)
def solve(
    config: ConfigArgument,
    solver: SolverOption = None,
    objective: ObjectiveOption = None,
    oracle: OracleOption = None,
    time_limit: TimeLimitOption = None,
    seed: SeedOption = None,
    changes: SetOption = None,
    verify: VerifyOption = None,
    start: StartOption = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="PLAN.json", help="Save the plan.")] = None,
    as_json: JSONOption = False,
) -> None:
    """Search a plan for a config, print it, and save it with `-o`.

    Ctrl-C, SIGTERM and --time-limit end the search with the best found so far. Exit code 1 means that there is no
    complete plan; the reason names the adapters and the limit, and nothing is saved.
    """
    if output is not None:
        require_writable(output)
    begin = None if start is None else read_plan(start)
    plan = options.solve(options.read(config, solver, objective, oracle, time_limit, seed, changes, verify), begin)
    if as_json:
        typer.echo(plan.to_json(), nl=False)
    else:
        show.plan(plan)
    if not plan.complete:
        terminal.error(f"no feasible plan: {plan.reason}")
        raise typer.Exit(1)
    if output is not None:
        plan.save(output)
        terminal.note(f"plan written to {output}; next: loraplan validate {output}")


@app.command(
    epilog=examples(
        "validate plan.json", "validate plan.json --seeds 10 --config busier.yaml", "validate plan.json --lose each"
    )
)
def validate(
    plan: PlanArgument,
    seeds: SeedsOption = 3,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="CONFIG.yaml", help="Replay this config's workload instead of the plan's own."
        ),
    ] = None,
    lose: Annotated[
        str | None,
        typer.Option("--lose", metavar="GPU", help="Replay what is left when this GPU is lost; `each`: one by one."),
    ] = None,
    as_json: JSONOption = False,
) -> None:
    """Replay a plan's workload in the digital twin on fresh seeds: which GPUs starve?

    A GPU is starved if it serves, in the mean over the seeds, less than the plan's served fraction (0.9 unless set) of
    the tokens that arrive. The interval is the 95 % confidence interval of that mean. With `--lose`, of a plan made
    with constraints.reserve, a lost GPU's adapters are where the plan puts them then.
    """
    made = read_plan(plan)
    workload = None if config is None else build(load_config(config)).replay
    if lose is not None:
        ids = [gpu.id for gpu in made.gpus] if lose == "each" else [lose]
        left = {gpu: without(made, gpu) for gpu in ids}
        losses, workload = {}, workload or recorded_workload(made)
        with terminal.progress("replaying in the twin") as advance:
            for done, (gpu, rest) in enumerate(left.items()):
                losses[gpu] = validate_plan(rest, workload, seeds)
                advance(done + 1, len(left))
        if as_json:
            terminal.print_json(losses)
        else:
            show.losses(losses)
        return
    with terminal.progress("replaying in the twin") as advance:
        validation = validate_plan(made, workload, seeds, on_progress=advance)
    if as_json:
        terminal.print_json(validation)
    else:
        show.validation(validation, made)


app.command(
    epilog=examples(
        "compare config.yaml --solvers greedy,best_fit --time-limit 60",
        "compare config.yaml --solver local_search --objectives gpu_count,latency,cost",
    )
)(compare)


app.command(
    epilog=examples(
        "pareto config.yaml",
        "pareto config.yaml --x cost --y latency --set 'objective={name: latency, figure: ttft_p95_s}'",
        "pareto config.yaml --x energy --y headroom --points 8 --seeds 3 --plot front.html",
    )
)(pareto)


app.command(
    epilog=examples(
        "bench tiny paper-synthetic --time-limit 30 -o results",
        "bench 'paper-synthetic/128-*' --solvers greedy,best_fit --check benchmarks/results/latest.csv",
        "bench popularity --executor ray --ray-address 10.0.0.1:6379",
    )
)(bench)
app.command(epilog=examples("report bench-results -o report.html", "report plan.json -o plan.html --seeds 10"))(report)


app.command(
    epilog=examples(
        "replan plan.json --workload tomorrow.yaml --max-moves 20 -o new.json",
        "replan plan.json --workload tomorrow.yaml --max-moves 20 --steps steps.json --objective latency",
    )
)(replan)


app.command(epilog=examples("check plan.json", "check plan.json --json"))(check)


@app.command(name="list", epilog=examples("list solvers", "list profiles --json"))
def list_names(
    kind: Annotated[Listed, typer.Argument(help="What to list.")],
    as_json: JSONOption = False,
) -> None:
    """List what a config can name, those added by installed plugins among them; and the suites of `bench`."""
    registries: dict[Listed, Registry[Any]] = {
        Listed.solvers: SOLVERS,
        Listed.objectives: OBJECTIVES,
        Listed.oracles: ORACLES,
        Listed.profiles: PROFILES,
    }
    if kind is Listed.suites:
        entries = suite_entries()
    else:
        entries = [registries[kind].entry(name) for name in registries[kind].names()]
    if as_json:
        terminal.print_json(entries)
    else:
        show.entries(kind.value, entries)


@app.command(epilog=examples("schema plan", "schema config > config.schema.json"))
def schema(kind: Annotated[Schema, typer.Argument(help="Which format.")]) -> None:
    """Print the JSON schema of a file format."""
    model = Plan if kind is Schema.plan else Config
    typer.echo(json.dumps(model.model_json_schema(), indent=1))


app.command(
    epilog=examples(
        "simulate plan.json",
        "simulate plan.json --gpu gpu-0 --plot gpu-0.html",
        "simulate plan.json --gpu gpu-0 --series gpu-0.csv --every 5 --trace gpu-0.json --window 600 660",
        "simulate config.yaml --slots 64",
    )
)(simulate)
app.command(
    name="explain",
    epilog=examples("explain plan.json", "explain config.yaml --set fleet.0.count=2", "explain plan.json --json"),
)(explain_file)
app.command(
    epilog=examples(
        "capacity --profile h100-64gb/llama-3.1-8b --rates 0.4,0.05,0.00625 --ranks 8,16",
        "capacity --profile my-gpu.yaml --rates 0.1 --ranks 16 --slots 16,32,64 --plot capacity.html -o capacity.csv",
    )
)(capacity)
app.command(
    epilog=examples(
        "calibrate --from-runs measured/ -o my-gpu.yaml --name my-gpu",
        "calibrate --url http://10.0.0.1:8000 --slots 16 --max-rank 32 -o my-gpu.yaml --budget 10m",
        "calibrate --launch MODEL --loras adapters/ --slots 8,16,32 -o my-gpu.yaml --name my-gpu",
    )
)(calibrate)
app.command(
    name="replay",
    epilog=examples(
        "replay plan.json --urls http://10.0.0.1:8000,http://10.0.0.2:8000 --duration 10m -o replay.json",
        "replay plan.json --launch MODEL --adapter-path '/srv/lora/{name}' --duration 60s",
    ),
)(replay_plan)
app.command(
    epilog=examples("fidelity --runs runs.csv", "fidelity --runs runs.csv --profile my-model=my-gpu.yaml -o errors.csv")
)(fidelity)
app.command(
    name="export",
    epilog=examples(
        "export plan.json --format vllm -o deploy --adapter-path '/srv/lora/{name}'",
        "export plan.json --format kubernetes | kubectl apply -f -",
        "export plan.json --format litellm --urls http://10.0.0.1:8000,http://10.0.0.2:8000 > litellm.yaml",
    ),
)(export_plan)
app.command(
    epilog=examples(
        "dataset design.yaml -o data",
        "dataset design.yaml -o data --set workloads=500 --workers 8",
        "dataset design.yaml -o data --executor ray --ray-address 10.0.0.1:6379",
    )
)(dataset)
app.command(
    epilog=examples(
        "train data -o model", "train data -o model --set epochs=60 --set seed=1", "train data -o model --json"
    )
)(train)
app.command(
    name="evaluate",
    epilog=examples(
        "evaluate --runs runs.csv",
        "evaluate my-model --dataset unseen --train-data data --plot evaluation.html",
        "evaluate --profile my-gpu.yaml --workloads 500",
    ),
)(evaluate_model)


@app.command(epilog=examples("doctor", "doctor --json"))
def doctor(as_json: JSONOption = False) -> None:
    """Check the installation: versions, packages from one place, the twin compiled and its speed."""
    with terminal.progress("checking") as advance:
        found = checks.run(advance)
    if as_json:
        terminal.print_json(found)
    else:
        show.checks(found)
    if not all(check.ok for check in found):
        raise typer.Exit(1)
