"""Read what a plan is asked for: key=value words, and the computer it is for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dit8.conf.paths import ROOT
from dit8.eval.doctor import read_configs
from dit8.eval.gpus import Gpu, load_peaks
from dit8.eval.provenance import query_gpus
from dit8.eval.reproduce.estimate import gpu_key
from dit8.eval.reproduce.plan import MODELS, TABLES
from dit8.eval.reproduce.step import Machine, Request
from dit8.eval.stats import MIN_PROMPTS
from dit8.quant.errors import UserError
from dit8.scripts.cli import compose, mistake

MADE_FOR_GB = {"cuda_24gb": 24.0}
KEYS = ("table", "model", "hardware", "gpu", "n", "results", "plan")
# what a plan decides itself, and what would change a row without changing what it is called
DECIDED = ("variant", "scorers", "prompt_style", "report", "shard", "lora", "model.reference")
PARTS = ("variant.", "recipe.", "sampler.")


@dataclass(frozen=True)
class Wanted:
    """Hold what the words ask for; `words` are they, to be repeated in an advice."""

    tables: tuple[int, ...]
    request: Request
    only_plan: bool
    words: tuple[str, ...]


def read_words(words: Sequence[str]) -> Wanted:
    """Read key=value words.

    Raises:
        UserError: a word that is none, no table, or a value that is not one of those possible.
    """
    given, overrides = {"model": "mini", "hardware": "auto", "results": Request.results}, []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UserError(f"a word must be key=value, got {word!r}; write table=3")
        if key in KEYS:
            given[key] = value
        else:
            overrides.append(word)
    if "table" not in given:
        raise UserError("table must be given, got none; write table=1 to table=9, or table=all")
    names = tuple(read_configs(ROOT / "conf" / "hardware"))
    if given["hardware"] not in names:
        raise UserError(
            f"hardware must be one of {', '.join(names)}, got {given['hardware']!r}; correct it"
        )
    if given.get("plan", "false") not in ("true", "false"):
        raise UserError(f"plan must be true or false, got {given['plan']!r}; correct it")
    for key in ("n", "table"):
        text = given.get(key, "1")
        if not text.isdecimal() and (key, text) != ("table", "all"):
            raise UserError(f"{key} must be a number, got {text!r}; correct it")
    n = int(given["n"]) if "n" in given else None
    if n is not None and n < MIN_PROMPTS:
        raise UserError(f"n must be at least {MIN_PROMPTS}, got {n}; fewer give no interval")
    check_overrides(given["model"], given["hardware"], overrides)
    only_plan = given.get("plan") == "true"
    gpus = load_peaks(peaks_path())
    machine = this_machine(given["hardware"], given.get("gpu"), gpus)
    if "gpu" in given and not only_plan and machine.gpu != (here := this_gpu(gpus)):
        raise UserError(
            f"gpu must be this computer's card to run the plan, got {given['gpu']} where there is "
            f"{here or 'none of conf/gpus/peaks.csv'}; leave it out, or add plan=true"
        )
    tables = TABLES if given["table"] == "all" else (int(given["table"]),)
    request = Request(
        table=tables[0],
        model=given["model"],
        hardware=given["hardware"],
        machine=machine,
        n=n,
        results=given["results"],
        overrides=tuple(overrides),
    )
    return Wanted(tables, request, only_plan, tuple(words))


def check_overrides(model: str, hardware: str, overrides: Sequence[str]) -> None:
    """Refuse words that scripts/evaluate.py would refuse, and those that a plan decides.

    Raises:
        UserError: such a word.
    """
    for word in overrides:
        key = word.partition("=")[0].lstrip("+~")
        if key in DECIDED or key.startswith(PARTS):
            raise UserError(
                f"{key} is what a table decides, got {word!r}; leave it out, or run "
                "scripts/evaluate.py itself"
            )
    if model not in MODELS:
        return  # the plan says which there are
    try:
        compose("evaluate", [f"model={model}", f"hardware={hardware}", *overrides])
    except Exception as error:
        if (sentence := mistake(error)) is None:
            raise
        raise UserError(sentence) from error


def peaks_path() -> Path:
    """Return the table of peaks."""
    return ROOT / "conf" / "gpus" / "peaks.csv"


def this_gpu(gpus: Sequence[Gpu]) -> str | None:
    """Return the key of the first card that the driver lists; None: no card, or not in `gpus`."""
    found = _first_card()
    return gpu_key(found[0], gpus) if found else None


def this_machine(hardware: str, gpu: str | None, gpus: Sequence[Gpu]) -> Machine:
    """Find out what the plan is for: the named card, or the first one that the driver lists.

    A card's memory is counted as its maker does: that of the table of peaks, for others the GiB
    that the driver lists, called GB. The 7 % between the two are left to driver and display, so
    that 24 GB are the same 24 GB on an RTX 3090 and on a 3090 Ti, which is not in the table.

    Raises:
        UserError: a card that is not in the table of peaks.
    """
    known = {card.gpu: card for card in gpus}
    if gpu is not None and gpu not in known:
        raise UserError(f"gpu must be one of {', '.join(known)}, got {gpu!r}; correct it")
    device = str(read_configs(ROOT / "conf" / "hardware")[hardware]["device"])
    found = _first_card()
    if device == "auto":
        device = "cuda" if gpu or found else "cpu"
    if device == "cpu":
        return Machine("cpu", "", None)
    gpu = gpu or this_gpu(gpus)
    if gpu is not None:
        return Machine("cuda", gpu, known[gpu].memory_gb)
    if found:
        return Machine("cuda", "", found[1])
    return Machine("cuda", "", MADE_FOR_GB.get(hardware))  # what the configuration is made for


def _first_card() -> tuple[str, float | None] | None:
    """Return name and GiB of the first card that the driver lists, None without one."""
    for line in (query_gpus() or "").splitlines():
        if line.count(",") >= 3:
            name, _, mebibytes, _ = (part.strip() for part in line.rsplit(",", 3))
            return name, int(mebibytes) / 1024 if mebibytes.isdecimal() else None
    return None
