"""Leave out runs that were made again: of runs with one configuration the newest counts.

A run is named after its configuration and its checkpoint's hash. When a checkpoint is written
again in a newer layout, the same configuration gets another name, and the ledger then has two runs
where one was meant. `results/runs/<run_id>.json` tells them apart from runs that differ in more
than the columns of the ledger say, such as steps, guidance, a LoRA or the calibration: those all
stay.
"""

from pathlib import Path

import pandas as pd

from dit8.eval.ledger import read_record, was_only_scored
from dit8.quant.errors import UserError
from dit8.quant.files import canonical_json

# What decides a checkpoint beside the model, its format and the recipe: only its hash is in a
# run's name, and a hash does not tell a newer layout from other weights. Here with the values of
# records that are older than the key.
CHECKPOINT = {
    **{"lora": None, "lora_scale": 1.0, "calibration": None},
    "latency": "conf/latency/h200.csv",  # of recipe=auto
}


def newest_runs(rows: pd.DataFrame, records: Path) -> pd.DataFrame:
    """Drop the rows of every run that a newer one with the same configuration replaces.

    Args:
        rows: of the ledger.
        records: folder of <run_id>.json. A run without a record is kept, for nothing says what
            it was.

    Raises:
        UserError: a record that is no JSON object with a run's identity, prompts, configuration and
            start.
    """
    newest: dict[str, tuple[str, str]] = {}
    replaced = set()
    for run_id in sorted(rows["run_id"].unique()):
        path = records / f"{run_id}.json"
        record = read_record(path)
        if was_only_scored(record):
            continue
        try:
            key = {name: value for name, value in record["run"].items() if name != "run_id"}
            weights = {n: record["config"].get(n, old) for n, old in CHECKPOINT.items()}
            same = canonical_json([key, record["identity"], record["prompts"], weights])
            found = (str(record["started"]), run_id)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"ledger: {path} must be the record of a run, got {type(error).__name__}: {error}; "
                "restore it from version control, or remove the run's rows"
            ) from error
        older, newest[same] = sorted([newest.get(same, found), found])
        if older != newest[same]:
            replaced.add(older[1])
    return rows[~rows["run_id"].isin(replaced)]
