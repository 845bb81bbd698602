"""Write a random checkpoint in the official FP8 layout, to try conversion at full size.

    python scripts/make_synthetic.py outputs/synthetic                 # 2 x 9.28 B weights, 18.7 GB
    python scripts/make_synthetic.py outputs/two_blocks --layers 2 --stats outputs/two_blocks.stats
    python scripts/make_synthetic.py outputs/original --layers 2 --layout original --shards 3
    python scripts/make_synthetic.py outputs/tiny --branches conditional --dtype bf16 \\
        --config '{"num_layers": 1, "intermediate_size": 1024, "llm_features_dim": 832}'

The weights mean nothing: they have the names, shapes, types and largest codes of real ones. --stats
adds random activation statistics for them, so that every recipe can be resolved. Prints one JSON
document last.
"""

import argparse
import json
import math
import sys
import time
from typing import Any

try:
    from dit8.conf.paths import from_root, shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"make_synthetic: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

from tqdm import tqdm

from dit8.quant.errors import UserError


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("folder", help="to be made; a relative path starts at the repository")
    made.add_argument("--layers", type=int, help="blocks per branch, 34 unless told")
    made.add_argument("--config", default="{}", help="other overrides, a JSON object")
    made.add_argument("--branches", nargs="+", default=["conditional", "unconditional"])
    made.add_argument("--dtype", default="fp8", help="or bf16")
    made.add_argument("--layout", default="diffusers", help="or original")
    made.add_argument("--shards", type=int, default=1, help="files per branch, at most")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--stats", help="file for activation statistics that go with it")
    return made


if __name__ == "__main__":
    parser().parse_args()  # help and mistakes end here: what follows takes seconds

from dit8.models.memory import peak_rss_bytes
from dit8.models.synthetic import (
    Options,
    bytes_needed,
    describe,
    synthetic_key,
    write_synthetic,
)
from dit8.models.synthetic_values import synthetic_stats
from dit8.quant.calibrate import save_stats


def parse_config(text: str, layers: int | None) -> dict[str, Any]:
    """Read the configuration's overrides."""
    try:
        overrides = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"--config must be a JSON object, got {text!r} ({error}); quote it as in the examples"
        ) from error
    if not isinstance(overrides, dict):
        raise UserError(f"--config must be a JSON object, got {text!r}; write {{...}}")
    return overrides if layers is None else overrides | {"num_layers": layers}


def make_synthetic(arguments: argparse.Namespace) -> dict:
    """Write the checkpoint, then its statistics if asked for."""
    folder = from_root(arguments.folder)
    branch = describe(parse_config(arguments.config, arguments.layers))
    options = Options(
        tuple(arguments.branches),
        arguments.dtype,
        arguments.layout,
        arguments.shards,
        arguments.seed,
    )
    needed = bytes_needed(branch, options)
    print(f"{shorten(folder)} needs {needed / 1e9:.2f} GB of disk", file=sys.stderr)
    start = time.monotonic()
    with tqdm(total=needed, desc="write", unit="B", unit_scale=True) as bar:
        write_synthetic(folder, branch, options, bar.update)
    seconds = time.monotonic() - start
    document = {
        "folder": shorten(folder),
        "weights_per_branch": sum(math.prod(shape) for shape in branch.shapes.values()),
        "bytes": needed,
        "seconds": round(seconds, 2),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    if arguments.stats is not None:
        key = synthetic_key(folder)
        stats = synthetic_stats(
            branch.shapes, branch.architecture, options.branches, seed=options.seed, model_key=key
        )
        path = from_root(arguments.stats)
        save_stats(stats, path)
        document |= {"stats": shorten(path), "model_key": key}
    return document


def main() -> None:
    with one_sentence("make_synthetic"):
        print(json.dumps(make_synthetic(parser().parse_args())))


if __name__ == "__main__":
    main()
