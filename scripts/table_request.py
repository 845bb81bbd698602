"""Read what a plan is asked for: key=value words, and the computer it is for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.gpus import Gpu, load_peaks
from eval.reproduce.estimate import gpu_key
from eval.reproduce.plan import TABLES
from eval.reproduce.step import Machine, Request
from models.doctor import read_configs
from models.machine import query_gpus
from quant.errors import UserError
from scripts.cli import ROOT

MADE_FOR_GB = {"cuda_24gb": 24.0}
KEYS = ("table", "model", "hardware", "gpu", "n", "results", "plan")


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
    given, overrides = {"model": "mini", "hardware": "auto", "results": "results"}, []
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
        if not text.isdigit() and (key, text) != ("table", "all"):
            raise UserError(f"{key} must be a number, got {text!r}; correct it")
    tables = TABLES if given["table"] == "all" else (int(given["table"]),)
    request = Request(
        table=tables[0],
        model=given["model"],
        hardware=given["hardware"],
        machine=this_machine(given["hardware"], given.get("gpu"), load_peaks(peaks_path())),
        n=int(given["n"]) if "n" in given else None,
        results=given["results"],
        overrides=tuple(overrides),
    )
    return Wanted(tables, request, given.get("plan") == "true", tuple(words))


def peaks_path() -> Path:
    """Return the table of peaks."""
    return ROOT / "conf" / "gpus" / "peaks.csv"


def this_machine(hardware: str, gpu: str | None, gpus: Sequence[Gpu]) -> Machine:
    """Find out what the plan is for: the named card, or the first one that the driver lists.

    Raises:
        UserError: a card that is not in the table of peaks.
    """
    known = {card.gpu: card for card in gpus}
    if gpu is not None and gpu not in known:
        raise UserError(f"gpu must be one of {', '.join(known)}, got {gpu!r}; correct it")
    device = str(read_configs(ROOT / "conf" / "hardware")[hardware]["device"])
    answer = [line for line in (query_gpus() or "").splitlines() if line.count(",") >= 3]
    if device == "auto":
        device = "cuda" if gpu or answer else "cpu"
    if device == "cpu":
        return Machine("cpu", "", None)
    if gpu is None and answer:
        name, _, mebibytes, _ = (part.strip() for part in answer[0].rsplit(",", 3))
        gpu = gpu_key(name, gpus)
        if gpu is None:
            memory = int(mebibytes) * 2**20 / 1e9 if mebibytes.isdigit() else None
            return Machine("cuda", "", memory)
    if gpu is None:  # not here: the card is what the configuration is made for
        return Machine("cuda", "", MADE_FOR_GB.get(hardware))
    return Machine("cuda", gpu, known[gpu].memory_gb)
