"""What every script shares: composing a checked configuration, and one sentence for a mistake."""

import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import models  # noqa: F401 (quiets bitsandbytes before a script imports diffusers)
from conf.schema import VariantConfig, register
from quant.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
CONF = str(ROOT / "conf")


def hydra_main(name: str) -> Callable[[Callable[[Any], bool | None]], Callable[[], None]]:
    """Decorate a script's `main(config)`: Hydra's command line, typed config, one-line errors.

    `main` returns False where a part failed that did not stop the rest. Exit codes: 0 done, 1 such
    a part in any job of a sweep, 2 the user's mistake, 130 interrupted. Anything else that is
    raised is a bug and shows its traceback.
    """

    def decorate(main: Callable[[Any], bool | None]) -> Callable[[], None]:
        complete: list[bool] = []

        def typed(config: DictConfig) -> None:
            with one_sentence(name):  # here too: Hydra adds a line to what leaves a job
                complete.append(main(OmegaConf.to_object(config)) is not False)

        def run() -> None:
            register()
            # Hydra prints composition errors itself, in several lines, unless told to raise them.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            with one_sentence(name):
                hydra.main(version_base=None, config_path=CONF, config_name=name)(typed)()
            if not all(complete):
                sys.exit(1)

        return run

    return decorate


def compose(name: str, overrides: list[str]) -> Any:
    """Compose a configuration without the command line; returns its dataclass."""
    register()
    with hydra.initialize_config_dir(CONF, version_base=None):
        return OmegaConf.to_object(hydra.compose(name, overrides))


def variant_config(name: str) -> VariantConfig:
    """Read one file of conf/variant, also while Hydra is running."""
    path = Path(CONF) / "variant" / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise UserError(f"variant must be one of {known}, got {name!r}; correct the name")
    return VariantConfig(**OmegaConf.load(path))


class one_sentence:  # noqa: N801 (used like a function)
    """End the script with one line on stderr when its user made a mistake or pressed Ctrl-C."""

    def __init__(self, script: str):
        self.script = script

    def __enter__(self) -> None:
        # A kill ends the script the way Ctrl-C does: temporary files are removed on the way out.
        signal.signal(signal.SIGTERM, signal.default_int_handler)

    def __exit__(self, kind, error, traceback) -> bool:
        if isinstance(error, KeyboardInterrupt):
            print(f"\n{self.script}: interrupted; the same command continues", file=sys.stderr)
            sys.exit(130)
        if isinstance(error, UserError | HydraException | OmegaConfBaseException):
            print(f"{self.script}: {_sentence(error)}", file=sys.stderr)
            sys.exit(2)
        return False


def _sentence(error: Exception) -> str:
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


def say_what_is_lacking(document: Mapping[str, Any]) -> None:
    """Tell on stderr which scorers were not measured or failed, a line each."""
    for key in ("not_measured", "failed"):
        for name, reason in document[key].items():
            print(f"{name} {key.replace('_', ' ')}: {reason}", file=sys.stderr)


def from_root(path: str) -> Path:
    """Resolve a configured path; relative ones start at the repository."""
    return ROOT / path


def terse(path: Path) -> str:
    """Show a path relative to the repository when it lies inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
