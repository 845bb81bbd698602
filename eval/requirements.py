"""Find out which packages are installed, and which ones a file of ours needs.

Optional packages are looked up, never imported. What a scorer or a format needs is read off the
import statements of its files, so that a new one needs no entry in a table.
"""

import ast
import importlib.metadata
import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

OURS = "dit8"  # the folders of the repository are its sub-packages
# import name -> distribution, where they differ
DISTRIBUTIONS = {"PIL": "pillow", "open_clip": "open-clip-torch", "skimage": "scikit-image"}
NAME = re.compile(r"[A-Za-z0-9._-]+")  # what a requirement begins with


@cache
def project(root: Path) -> dict[str, Any]:
    """Read the table `project` of pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def check_requirement(requirement: str) -> tuple[str, bool, str]:
    """Compare a requirement of pyproject.toml with what is installed.

    Returns:
        the distribution's name, whether it is satisfied, and the version or what is wrong.
    """
    name = NAME.match(requirement).group()
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return name, not _applies(requirement), "not installed"
    if importlib.util.find_spec("packaging") is None:
        return name, True, version
    from packaging.requirements import Requirement

    specifier = Requirement(requirement).specifier
    if specifier.contains(version, prereleases=True):
        return name, True, version
    return name, False, f"{version}, expected {specifier}"


def _applies(requirement: str) -> bool:
    """Tell whether a requirement's marker, such as a platform, holds here."""
    if ";" not in requirement or importlib.util.find_spec("packaging") is None:
        return True
    from packaging.requirements import Requirement

    return Requirement(requirement).marker.evaluate()


def missing_from_extra(requirements: Iterable[str]) -> list[str]:
    """List the requirements that are not satisfied, with the reason."""
    checked = [check_requirement(requirement) for requirement in requirements]
    return [f"{name} ({detail})" for name, ok, detail in checked if not ok]


def install_command(extra: str) -> str:
    """Name the command that installs an extra."""
    return f"pip install -e '.[{extra}]'"


def imported_packages(path: Path, root: Path) -> set[str]:
    """Name the packages that a file imports anywhere in it, our own files followed.

    Args:
        path: a Python file of the repository.
        root: of the repository.

    Returns:
        top-level import names that are neither ours nor the standard library's.
    """
    found: set[str] = set()
    queue, seen = [path], {path}
    while queue:
        for name in _imports(queue.pop()):
            top = name.partition(".")[0]
            if top != OURS:
                found.add(top)
                continue
            for file in _files(name, root):
                if file not in seen:
                    seen.add(file)
                    queue.append(file)
    return found - set(sys.stdlib_module_names)


def _imports(path: Path) -> list[str]:
    """List the dotted names in the import statements of a file."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def _files(name: str, root: Path) -> list[Path]:
    """Find the file of a dotted name that is a module of ours, or a name inside one."""
    whole = root.joinpath(*name.split(".")[1:])
    return [
        path
        for path in (whole.with_suffix(".py"), whole.parent.with_suffix(".py"))
        if path.is_file()
    ]


def lacking(paths: Iterable[Path], root: Path) -> list[str]:
    """Say what has to be installed before these files can run, one phrase a package or extra."""
    required, extras = project(root)["dependencies"], project(root)["optional-dependencies"]
    needs = set()
    for package in sorted({name for path in paths for name in imported_packages(path, root)}):
        name = _normal(DISTRIBUTIONS.get(package, package))
        listing = [extra for extra, wanted in extras.items() if name in map(_normal, wanted)]
        if len(listing) == 1 and name not in map(_normal, required):
            # the extra's other packages are needed too, imported by a file of ours or not
            if missing_from_extra(extras[listing[0]]):
                needs.add(f"extra {listing[0]}: {install_command(listing[0])}")
        elif importlib.util.find_spec(package) is None:
            needs.add(f"extra {' or '.join(listing)}" if listing else f"package {name}")
    return sorted(needs)


def _normal(requirement: str) -> str:
    """Return the distribution's name in the one spelling that names are compared in."""
    return NAME.match(requirement).group().lower().replace("_", "-")
