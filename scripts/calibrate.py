"""Take activation statistics of a model: the largest magnitude of every channel, per step.

    python scripts/calibrate.py                                   # the mini, 32 captions, 20 steps
    python scripts/calibrate.py model=mini_planted calibration.n=8

Runs every calibration caption through all denoising steps of both branches. Stopped and started
again it continues with the captions not yet done. Prints one JSON document last.
"""

import json
import sys
import time

try:
    from dit8.conf.paths import shorten
    from dit8.scripts.cli import hydra_main, parse_first
except ModuleNotFoundError as missing:
    print(f"calibrate: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

from dit8.conf.schema import CalibrateConfig

if __name__ == "__main__":
    parse_first("calibrate", __doc__)  # help and mistakes end here: what follows takes seconds

from dit8.models.artifacts import calibrate_model, open_model
from dit8.models.memory import peak_rss_bytes


@hydra_main("calibrate")
def main(config: CalibrateConfig) -> None:
    start = time.monotonic()
    path, stats = calibrate_model(config, open_model(config.model))
    document = {
        "statistics": shorten(path),
        "prompts": stats.total,
        "rows": stats.rows,
        "seconds": round(time.monotonic() - start, 2),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
