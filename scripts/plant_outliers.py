"""Derive a model whose activations have outlier channels and whose output is the same.

    python scripts/plant_outliers.py                              # models/mini -> mini_planted
    python scripts/plant_outliers.py model.plant.seed=1 model.path=checkpoints/models/planted_1

A few channels j of every activation are made 8 to 64 times larger by powers of two, and what reads
them smaller by the same: in fp32 the output keeps every bit. It tests that outliers are found and
repaired; it is no evidence about Ideogram 4.
"""

import json
import sys

try:
    from dit8.conf.paths import from_root, shorten
    from dit8.scripts.cli import hydra_main, parse_first
except ModuleNotFoundError as missing:
    print(f"plant_outliers: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

from dit8.conf.schema import CalibrateConfig
from dit8.quant.errors import UserError

if __name__ == "__main__":
    parse_first("plant_outliers", __doc__)  # help and mistakes end here: what follows takes seconds

from dit8.models.artifacts import open_model
from dit8.models.planted import RECORD


@hydra_main("plant_outliers")
def main(config: CalibrateConfig) -> None:
    if config.model.plant is None:
        raise UserError(
            f"model {config.model.name} has no plan for planting, expected a model whose "
            "configuration has a key plant; use model=mini_planted"
        )
    if from_root(config.model.path).exists():
        raise UserError(f"{config.model.path} exists already; delete it or change model.path")
    model = open_model(config.model)
    record = json.loads((model.folder / RECORD).read_text())
    channels = {b: sum(map(len, record[b].values())) for b in ("conditional", "unconditional")}
    print(json.dumps({"model": shorten(model.folder), "key": model.key, "channels": channels}))


if __name__ == "__main__":
    main()
