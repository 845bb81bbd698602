"""Time whole images of the full-size model, random weights, ours beside stock diffusers.

    python scripts/bench_model.py --variants stock compiled bf16 fused_int8 rotated
    python scripts/bench_model.py --resolutions 768 --seconds 300
    python scripts/bench_model.py --variants stock bf16 fp8 nf4 q8_0 q4_k int8 --seconds 1200
    python scripts/bench_model.py --check                 # is the engine right at full width?
    python scripts/bench_model.py --cap-gb 24             # one whole picture on a 24 GB card
    python scripts/bench_model.py --tiny --device cpu     # rehearsal: another model, seconds

A CFG step is the conditional forward (text and image tokens), the unconditional one (image tokens),
guidance and the Euler step. An image is 48 of them plus what comes once: text projection, adaLN and
rotary tables. Text encoder and VAE are left out, but for --cap-gb. The paths (scripts/
model_paths.py) take turns, one image each, A B A B; an interval is Student's over images, 95 %.
Then three steps of each are profiled. With fewer than 48 steps only cfg_step_ms is kept.

The card must reach its bf16 rate before the measurements and after every round, or the round is
dropped. Adds rows to <results>/bench/model.csv after every round, under one run_id, and writes
<results>/bench/runs/<run_id>.json at the end. Rounds stop in time for --seconds. Prints the table
of this run, and one JSON document last.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

try:
    from dit8.conf.paths import from_root, shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"bench_model: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

from dit8.eval.ledger import upsert
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically
from dit8.scripts.run_identity import identify

# 97 GB of weights: the bf16 ones share theirs
DEFAULT = ("stock", "compiled", "bf16", "fp8", "fused_int8", "rotated")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--variants", nargs="+", default=DEFAULT, help="see scripts/model_paths.py")
    made.add_argument("--resolutions", nargs="+", type=int, help="px of a side")
    made.add_argument("--images", type=int, help="rounds: images of each path")
    made.add_argument("--steps", type=int, help="of an image; image_s needs 48")
    made.add_argument("--text-tokens", type=int)
    made.add_argument("--layers", type=int, help="blocks a branch")
    made.add_argument("--seconds", type=float, default=540.0, help="begin no round later")
    made.add_argument("--tiny", action="store_true", help="a toy's widths: a rehearsal")
    made.add_argument("--check", action="store_true", help="compare with fp32, time nothing")
    made.add_argument("--cap-gb", type=float, help="draw under a cap of decimal GB instead")
    made.add_argument("--device", default="auto", help="auto, cpu or cuda")
    made.add_argument("--expected-tflops", type=float, help="bf16 rate of a healthy card")
    made.add_argument("--results", help="default: outputs/results, or outputs/tiny with --tiny")
    return made


if __name__ == "__main__":
    parser().parse_args()  # help and mistakes end here: what follows takes seconds

import torch

from dit8.models.pipeline import resolve_device
from dit8.scripts.capped_generation import Gauge, generate_capped, used_bytes
from dit8.scripts.check_model import check_model
from dit8.scripts.model_paths import PATHS
from dit8.scripts.model_rows import MODEL, bytes_row
from dit8.scripts.model_run import Machine, Plan, Run, measure, open_machine, open_paths
from dit8.scripts.model_speed_table import model_table

RESOLUTIONS = (1024,)
PACKAGES = ("torch", "triton", "diffusers")
TINY = {"layers": 2, "text_tokens": 5, "resolutions": (64,), "steps": 4, "images": 2}


def bench(
    machine: Machine, plan: Plan, results: FilePath, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measure every path at every resolution; returns the document that is printed last.

    Raises:
        UserError: a throttled card, values that are not finite, no known commit, out of memory.
    """
    begun = machine.now()
    shared, found = identify(_now(), machine.gpu, PACKAGES)
    run = Run(machine, plan, shared, results / "bench" / "model.csv", say)
    rate = machine.gate("before")
    paths = open_paths(plan, machine.device)
    say(f"{len(paths)} paths ready after {machine.now() - begun:.1f} s; bf16 {rate} TFLOPS before")
    for number, size_px in enumerate(plan.resolutions):
        # what is left is shared among the resolutions that are left
        share = (begun + plan.seconds - machine.now()) / (len(plan.resolutions) - number)
        measure(run, paths, size_px, machine.now() + share)
    rows = list(run.rows.values())
    say(model_table(rows))
    document = {
        "run_id": shared["run_id"],
        "table": shorten(run.table),
        "rows": len(rows),
        "images": run.images,
        "seconds": round(machine.now() - begun, 1),
        "cfg_step_ms": {
            f"{r['variant']}/{r['engine']}/{r['resolution']}": round(r["value"], 2)
            for r in rows
            if r["quantity"] == "cfg_step_ms"
        },
    }
    record = document | {"kernels": run.kernels, "provenance": found}
    text = json.dumps(record, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    kept = results / "bench" / "runs" / f"{shared['run_id']}.json"
    write_atomically(kept, lambda path: path.write_text(text, encoding="utf-8"))
    return document | {"record": shorten(kept)}


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def make_plan(arguments: argparse.Namespace) -> Plan:
    """Turn the command line into a plan; what was not given depends on --tiny."""
    chosen = {
        "layers": arguments.layers,
        "text_tokens": arguments.text_tokens,
        "steps": arguments.steps,
        "images": arguments.images,
        "resolutions": arguments.resolutions and tuple(arguments.resolutions),
    }
    defaults = TINY if arguments.tiny else {"resolutions": RESOLUTIONS}
    chosen = defaults | {name: value for name, value in chosen.items() if value is not None}
    paths = tuple(dict.fromkeys(arguments.variants))
    return Plan(paths, full=not arguments.tiny, seconds=arguments.seconds, **chosen)


def cap(device: torch.device, plan: Plan, cap_gb: float, results: FilePath) -> dict[str, Any]:
    """Draw one picture under a cap and keep its peak.

    Raises:
        UserError: no CUDA device, or it does not fit.
    """
    if device.type != "cuda":
        raise UserError(
            f"cap-gb caps the memory of an NVIDIA GPU, got device {device.type}; run it on one"
        )
    gauge = Gauge(device, used_bytes())  # before anything touches the device
    shared, _ = identify(_now(), torch.cuda.get_device_name(device), PACKAGES)
    size_px = plan.resolutions[0]
    found = generate_capped(
        gauge, plan.layers, plan.text_tokens, size_px, plan.steps, cap_gb, full=plan.full
    )
    columns = {"variant": "fused_int8", "engine": "dit8", "resolution": size_px}
    columns["text_tokens"] = plan.text_tokens
    columns["versions"] = f"{shared['versions']}; cap {cap_gb:g} GB"
    row = bytes_row(shared | columns, "peak_bytes_capped", found["peak_bytes_capped"])
    upsert(results / "bench" / "model.csv", MODEL, [row])
    return {"run_id": shared["run_id"]} | found


def check(device: torch.device, plan: Plan, results: FilePath) -> dict[str, Any]:
    """Check the variants of the plan's dit8 paths."""
    variants = [PATHS[name][0] for name in plan.paths if PATHS[name][1] == "dit8"]
    sizes = (plan.layers, plan.text_tokens, plan.resolutions[0])
    path = results / "bench" / "model_check.json"
    return check_model(device, variants, *sizes, path, full=plan.full)


def main() -> None:
    with one_sentence("bench_model"):
        arguments = parser().parse_args()
        device, plan = resolve_device(arguments.device), make_plan(arguments)
        results = from_root(
            arguments.results or f"outputs/{'tiny' if arguments.tiny else 'results'}"
        )
        if arguments.check:
            print(json.dumps(check(device, plan, results)))
            return
        if arguments.cap_gb is not None:
            print(json.dumps(cap(device, plan, arguments.cap_gb, results)))
            return
        machine = open_machine(device, arguments.expected_tflops)
        try:
            print(json.dumps(bench(machine, plan, results)))
        except torch.OutOfMemoryError as error:
            raise UserError(
                "the GPU's memory is full; choose fewer --variants, whose branches are all there "
                f"at once: {str(error).splitlines()[0][:160]}"
            ) from error


if __name__ == "__main__":
    main()
