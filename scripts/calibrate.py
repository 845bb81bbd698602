"""Take activation statistics of a model: the largest magnitude of every channel, per step.

    python scripts/calibrate.py                                   # the mini, 32 captions, 20 steps
    python scripts/calibrate.py model=mini_planted calibration.n=8

Runs every calibration caption through all denoising steps of both branches. Stopped and started
again it continues with the captions not yet done. Prints one JSON document last.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json
import time

from conf.schema import CalibrateConfig
from scripts.cli import hydra_main, parse_first, terse

if __name__ == "__main__":
    parse_first("calibrate", __doc__)  # help and mistakes end here: what follows takes seconds

from scripts.stages import calibrate_model, open_model, peak_rss_bytes


@hydra_main("calibrate")
def main(config: CalibrateConfig) -> None:
    start = time.monotonic()
    path, stats = calibrate_model(config, open_model(config.model))
    document = {
        "statistics": terse(path),
        "prompts": stats.total,
        "rows": stats.rows,
        "seconds": round(time.monotonic() - start, 2),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
