"""Name a run of a benchmark and say what it ran on, in the columns that all of its rows share."""

import datetime
import re
import secrets
from collections.abc import Sequence
from typing import Any

from dit8.conf.paths import ROOT
from dit8.eval.provenance import describe
from dit8.quant.errors import UserError


def make_run_id(start: datetime.datetime, commit: str, gpu: str) -> str:
    """Name a run by UTC time, commit, GPU and chance: 20261121-073105-8efc9a7-nvidia_h200-3fa9.

    Sorts by time. The last four digits are random: on a computer with several GPUs two runs may
    start in the same second.
    """
    slug = re.sub(r"[^a-z0-9]+", "_", gpu.lower()).strip("_")
    moment = f"{start.astimezone(datetime.UTC):%Y%m%d-%H%M%S}"
    return f"{moment}-{commit[:7]}-{slug}-{secrets.token_hex(2)}"


def identify(
    start: datetime.datetime, gpu: str, packages: Sequence[str]
) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the columns run_id, gpu, versions and commit, and the run's whole provenance.

    Args:
        start: of the run.
        gpu: the device's name.
        packages: whose versions the rows carry, before the driver's.

    Raises:
        UserError: the commit is not known.
    """
    found = describe(ROOT)
    commit = found["git"]["commit"]
    if commit is None:
        raise UserError(
            "the rows need the commit of this tree, got none; run in its git checkout or set "
            "DIT8_COMMIT"
        )
    commit += "-dirty" if found["git"]["dirty"] else ""
    software = {name: found["versions"][name] for name in packages}
    software["driver"] = found["hardware"]["driver"]
    versions = "; ".join(f"{name} {version or 'none'}" for name, version in software.items())
    run_id = make_run_id(start, commit, gpu)
    return {"run_id": run_id, "gpu": gpu, "versions": versions, "commit": commit}, found
