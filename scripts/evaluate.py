"""Evaluate a variant: generate a prompt set, score it, compare with the reference.

    python scripts/evaluate.py variant=fused_int8                 # the mini's hard set
    python scripts/evaluate.py variant=int8 prompts=mini_easy n=20 sampler=turbo_12
    python scripts/evaluate.py -m variant=bf16,int8,fused_int8 hardware=cuda
    python scripts/evaluate.py variant=fused_int8 engine=dit8     # the fast forward, for all
    python scripts/evaluate.py variant=int8 model=mini_planted recipe=naive
    python scripts/evaluate.py variant=int8 prompt_style=raw      # sentences in place of JSON
    python scripts/evaluate.py scorers=[lpips,hpsv2] +scorer_options.hpsv2.checkpoint=FILE
    python scripts/evaluate.py variant=int8 hardware=cuda hardware.devices=4    # four GPUs
    python scripts/evaluate.py -m variant=bf16,int8 shard=0/2,1/2 hydra/launcher=submitit_slurm

Every variant starts from the same noise. Rows go to <results>/scores.csv and latency.csv, the
record of the run to <results>/runs, pictures to <out>/<run_id>; that is outputs/results and
outputs/runs, and results=results the committed ledger. Stopped and started again, a run continues.
Compare variants at one dtype: bf16 arithmetic alone moves the latents as much as INT8. A scorer
whose weights or packages are not here is reported as not measured and left out; one that fails is
named, the others go on, and the exit code is 1. What each score means (direction, range,
preprocessing, checkpoint hash) is in the record, too. At the end the runs that share the reference
are laid out in an HTML page (scripts/report.py; report=false: none). Prints the tables, and one
JSON document last. Sweeps (-m), shards and Slurm: docs/sweeps.md.
"""

import json
import shlex
import sys
import traceback
from collections.abc import Sequence

try:
    from dit8.conf.paths import from_root
    from dit8.scripts.cli import hydra_main, parse_first
except ModuleNotFoundError as missing:
    print(f"evaluate: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

from dit8.conf.schema import EvaluateConfig
from dit8.quant.errors import UserError
from dit8.scripts.sweep import CellRecord, is_sweep

if __name__ == "__main__":
    parse_first("evaluate", __doc__)  # help and mistakes end here: what follows takes seconds

from dit8.eval.evaluate import evaluate
from dit8.eval.report.load import compared_with
from dit8.eval.sweep_table import render_sweep
from dit8.scripts.report import report


def finish(records: Sequence[CellRecord]) -> dict:
    """End a sweep: print its table and make one page for every reference.

    Returns:
        the paths of the pages; for a sweep of shards the command that finishes it, and how many
        pictures are missing.
    """
    documents = [(r, r.document) for r in records if r.document is not None]
    scored = [(record, document) for record, document in documents if document.get("scores")]
    if table := render_sweep([(record.label, document) for record, document in scored]):
        print(table)
    told: dict = {}
    reports, failed = {}, {}
    for record, document in scored:
        config = record.config
        place = (config["results"], config["out"], document["reference"])
        if not config["report"] or place in reports:
            continue
        try:
            reports[place] = report_all(*place, config["readers"])
        except UserError as error:
            failed[f"report of {document['reference']}"] = str(error)
        except Exception as error:  # the other pages and the sweep's document are made all the same
            traceback.print_exc()
            why = " ".join(f"{type(error).__name__}: {error}".split())
            failed[f"report of {document['reference']}"] = why
    if reports:
        told["reports"] = list(reports.values())
    shards = [document for _, document in documents if "shard" in document]
    if shards:
        words = [word for word in sys.argv[1:] if not word.startswith("shard=")]
        missing: dict[str, int] = {}  # of each run, as the shard that ended last saw it
        for document in shards:
            seen = missing.get(document["run_id"], document["missing"])
            missing[document["run_id"]] = min(seen, document["missing"])
        told["missing"] = sum(missing.values())
        told["finish"] = f"python scripts/evaluate.py {shlex.join(words)}"
        print(f"evaluate: scores and tables are made by {told['finish']}", file=sys.stderr)
    return told | {"failed": failed}


@hydra_main("evaluate", finish)
def main(config: EvaluateConfig) -> dict:
    document, tables = evaluate(config)
    if tables:
        print(tables)
    if config.report and tables and not is_sweep():  # a sweep makes its pages once, at its end
        place = (config.results, config.out, document["reference"])
        try:
            document["report"] = report_all(*place, config.readers)
        except UserError as error:  # the rows are kept, and the document is printed all the same
            document["failed"]["report"] = str(error)
            print(f"evaluate: {error}", file=sys.stderr)
    print(json.dumps(document))
    return document


def report_all(results: str, out: str, reference: str, readers: int) -> str:
    """Make the page of every run that shares a reference; returns its path.

    Args:
        results: folder of the ledger.
        out: folder of the runs' pictures.
        reference: folder of the reference's pictures.
        readers: processes that read text.

    Raises:
        UserError: runs that cannot be shown together, or a folder that cannot be written.
    """
    folder = from_root(reference)
    found = compared_with(folder, from_root(results))
    page = from_root(out).parent / "report" / folder.name
    return report(found, from_root(results), page, readers=readers)["report"]


if __name__ == "__main__":
    main()
