"""What every script shares: composing a checked configuration, and one sentence for a mistake."""

import functools
import json
import logging.config
import os
import select
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import dit8.models  # noqa: F401 (quiets bitsandbytes before a script imports diffusers)
from dit8.conf.paths import CONF, ROOT
from dit8.conf.schema import CHOICES, SCHEMAS
from dit8.kernels.backend import KernelError
from dit8.models.prompts import prompt_file
from dit8.quant.errors import UserError
from dit8.quant.files import writing
from dit8.quant.types import make_recipe
from dit8.scripts.sweep import (
    CellRecord,
    Narrator,
    Sweep,
    jobs_that_all_end,
    plan_sweep,
    summary_document,
)

UNREAD = 141  # as a shell reports what ended by SIGPIPE
USE_DEVICES = ("evaluate",)  # scripts that use hardware.devices
# what hydra/job_logging=disabled, which the configurations choose, tells the libraries
QUIET = {"version": 1, "root": {"level": "ERROR"}, "disable_existing_loggers": True}


@functools.cache
def register() -> None:
    """Store the schemas where the defaults lists of conf/*.yaml find them."""
    store = ConfigStore.instance()
    for name, node in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=node)


def hydra_main(
    name: str, finish: Callable[[list[CellRecord]], dict[str, Any]] | None = None
) -> Callable[[Callable[[Any], dict | bool | None]], Callable[[], None]]:
    """Decorate a script's `main(config)`: Hydra's command line, typed config, one-line errors.

    `main` returns its document, whose "failed" names parts that failed without stopping the rest,
    or False where such a part has no name. In a sweep (-m) a cell that fails stops no other: every
    cell ends with a line on stderr, those that failed are named at the end with their sentence,
    and a document of the sweep is printed last. Exit codes: 0 done, 1 a part or a cell failed, 2
    the user's mistake, 130 interrupted. Anything else that one run raises is a bug and shows its
    traceback.

    Args:
        name: of the configuration in conf/ and of the script.
        finish: called with every cell's record when a sweep has ended; what it returns goes into
            the document, entries of its "failed" among the failed cells.
    """

    def decorate(main: Callable[[Any], dict | bool | None]) -> Callable[[], None]:
        def run() -> None:
            register()
            # Hydra prints composition errors itself, in several lines, unless told to raise them.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            with one_sentence(name):
                sweep = plan_sweep(name, sys.argv[1:], ROOT)
                complete = run_once(name, main) if sweep is None else run_all(sweep, main, finish)
            if not complete:
                sys.exit(1)

        return run

    return decorate


def parse_first(name: str, doc: str) -> None:
    """Answer --help and refuse what does not compose; called before a script's slow imports.

    A sweep composes its cells later, each on its own; Hydra's other flags are Hydra's.

    Args:
        name: as for `hydra_main`.
        doc: the script's docstring.
    """
    words = sys.argv[1:]
    if {"-h", "--help"} & set(words):
        with one_sentence(name):
            print(_help(name, doc))
        sys.exit()
    if not any(word.startswith("-") for word in words):
        with one_sentence(name):
            to_object(_composed(name, tuple(words)), name)


def _help(name: str, doc: str) -> str:
    """Return the docstring, the options of every group, and every key with its default."""
    lines = [doc.strip(), "", "Groups, chosen as group=option:"]
    for group in sorted(path for path in CONF.iterdir() if path.is_dir()):
        if options := sorted(path.stem for path in group.glob("*.yaml")):
            lines.append(f"  {group.name}: {', '.join(options)}")
    register()
    with hydra.initialize_config_dir(str(CONF), version_base=None):
        keys = OmegaConf.to_yaml(hydra.compose(name))
    lines += ["", "Keys, changed as key=value (conf/schema.py says what each is):", keys]
    return "\n".join(lines)


def run_once(name: str, main: Callable[[Any], dict | bool | None]) -> bool:
    """Run a script on its one configuration; False if a part failed.

    Hydra composes twice more, a third of a second, so it runs what has flags or words of its own.
    """
    outcomes: list[dict | bool | None] = []

    def typed(config: DictConfig) -> None:
        with one_sentence(name):  # here too: Hydra adds a line to what leaves a job
            outcomes.append(main(to_object(config, name)))

    words = sys.argv[1:]
    if any(word.lstrip("+~").startswith(("-", "hydra")) for word in words):
        hydra.main(version_base=None, config_path=str(CONF), config_name=name)(typed)()
    else:
        config = _composed(name, tuple(words))
        logging.config.dictConfig(QUIET)
        typed(config)
    return not any(
        outcome is False or (isinstance(outcome, dict) and outcome.get("failed"))
        for outcome in outcomes
    )


def run_all(
    sweep: Sweep,
    main: Callable[[Any], dict | bool | None],
    finish: Callable[[list[CellRecord]], dict[str, Any]] | None,
) -> bool:
    """Run every cell of a sweep, here or by its launcher; False if any failed."""
    narrator = Narrator(sweep) if sweep.is_here else None  # a launcher copies what `typed` holds

    def typed(config: DictConfig) -> None:
        register()  # in a process of a launcher nobody has
        number = HydraConfig.get().job.num
        sweep.run_cell(number, lambda: to_object(config, sweep.script), main, mistake)
        if narrator is not None:
            narrator.say()

    lost = ""
    try:
        with writing(sweep.folder):
            sweep.folder.mkdir(parents=True)
        with narrator or Narrator(sweep), jobs_that_all_end():
            hydra.main(version_base=None, config_path=str(CONF), config_name=sweep.script)(typed)()
    except KeyboardInterrupt as stop:
        if not sweep.is_here:
            raise KeyboardInterrupt("jobs that were handed over go on") from stop
        shutil.rmtree(sweep.folder, ignore_errors=True)
        raise
    except Exception as error:
        # Cells keep what they raise to themselves, so this is the launcher's or the composition's.
        if sweep.is_here or mistake(error) is not None:
            shutil.rmtree(sweep.folder, ignore_errors=True)
            raise
        lost = " ".join(f"{type(error).__name__}: {error}".split())
    records = sweep.close()
    document = summary_document(records)
    if lost:
        print(f"{sweep.script}: the launcher lost a cell ({lost})", file=sys.stderr)
    _say_failures(sweep.script, document["failed"])  # now: what follows may take long, or fail
    if finish is not None:
        told = finish(records)
        _say_failures(sweep.script, told.get("failed", {}))
        document = document | told | {"failed": document["failed"] | told.get("failed", {})}
    print(json.dumps(document))
    return not document["failed"]


def _say_failures(script: str, failed: Mapping[str, str]) -> None:
    for label, why in failed.items():
        print(f"{script}: {label}: {why}", file=sys.stderr)


def compose(name: str, overrides: list[str]) -> Any:
    """Compose a configuration without the command line; returns its dataclass."""
    return OmegaConf.to_object(_composed(name, tuple(overrides)))


@functools.lru_cache(maxsize=1)  # `parse_first` composes, and then `run_once` the same
def _composed(name: str, words: tuple[str, ...]) -> DictConfig:
    register()
    with hydra.initialize_config_dir(str(CONF), version_base=None):
        return hydra.compose(name, list(words))


def to_object(config: DictConfig, script: str) -> Any:
    """Turn a composed configuration into its dataclass, and `check` it."""
    found = OmegaConf.to_object(config)
    check(found, script)
    return found


def check(found: Any, script: str) -> None:
    """Refuse values that no script could use.

    Raises:
        UserError: one of CHOICES, a recipe or a prompt set that does not exist; several devices
            for a script that would leave all but one idle.
    """
    for key, choices in CHOICES.items():
        if (value := getattr(found, key, choices[0])) not in choices:
            raise UserError(f"{key} must be one of {', '.join(choices)}, got {value!r}")
    if hasattr(found, "recipe"):
        make_recipe(found.recipe)
    sets = (
        getattr(found, "prompts", None),
        getattr(getattr(found, "calibration", 0), "prompts", 0),
    )
    for name in filter(None, sets):
        prompt_file(name)
    devices = getattr(getattr(found, "hardware", None), "devices", 1)
    if devices != 1 and script not in USE_DEVICES:
        raise UserError(
            f"hardware.devices must be 1 for {script}, got {devices}; only scripts/evaluate.py "
            "draws with several"
        )


class one_sentence:  # noqa: N801 (used like a function)
    """End the script with one line on stderr when its user made a mistake or pressed Ctrl-C.

    Whoever reads its output may stop reading, as `| head` does: then it ends without a word.
    """

    def __init__(self, script: str):
        self.script = script

    def __enter__(self) -> None:
        # A kill ends the script the way Ctrl-C does: temporary files are removed on the way out.
        signal.signal(signal.SIGTERM, signal.default_int_handler)

    def __exit__(self, kind, error, traceback) -> bool:
        if isinstance(error, KeyboardInterrupt):
            more = f", {error}" if str(error) else ""  # "" from the keyboard
            print(
                f"\n{self.script}: interrupted{more}; the same command continues", file=sys.stderr
            )
            sys.exit(130)
        if isinstance(error, Exception) and (sentence := mistake(error)) is not None:
            print(f"{self.script}: {sentence}", file=sys.stderr)
            sys.exit(2)
        if error is None or isinstance(error, BrokenPipeError | SystemExit):
            _end_unread(error)
        return False


def _end_unread(error: BaseException | None) -> None:
    """End the script without a word if nobody reads its output any more."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    else:
        # What was being printed is lost with the error; a pipe to a process is another matter.
        if not isinstance(error, BrokenPipeError) or not _is_unread(sys.stdout):
            return
    # Python flushes once more at its end, and would say the same.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(UNREAD)


def _is_unread(stream: TextIO) -> bool:
    """Tell whether the reader of a pipe has gone; only POSIX can say."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
    except (AttributeError, OSError):
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def mistake(error: Exception) -> str | None:
    """Turn a user's mistake into its sentence; None for anything else, which is a bug."""
    if not isinstance(error, UserError | KernelError | HydraException | OmegaConfBaseException):
        return None
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        options = ", ".join(sorted(error.options))
        return f"{group or 'config'} must be one of {options}, got {name!r}; correct the name"
    text = str(error).strip()
    if isinstance(error, HydraException):
        cause = str(error.__cause__ or "").split("\n")[0]
        text = f"{text.splitlines()[0].rstrip('.')} ({cause})" if cause else text.splitlines()[0]
        return f"{text}; conf/schema.py lists every key"
    if isinstance(error, OmegaConfBaseException):
        return f"{text.splitlines()[0]}; conf/schema.py lists every key with its type"
    return " ".join(text.split())
