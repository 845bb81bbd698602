"""The rules of the house, read from the source: which way imports go, and what has one home.

    conf, kernels <- quant <- models <- eval <- scripts

Today's exceptions stand in allowed.json. The list may only shrink: a new one fails, and so does one
that is no longer there.
"""

import ast
import json
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = json.loads(Path(__file__).with_name("allowed.json").read_text(encoding="utf-8"))
LEVELS = {"conf": 0, "kernels": 0, "quant": 1, "models": 2, "eval": 3, "scripts": 4}
COMMAND_LINE = {"hydra", "omegaconf", "argparse"}  # for scripts only
MAX_LINES = 400
MAX_MIB = 58  # of tracked files: a copy of the tree and some wheels travel in 64


@cache
def sources() -> dict[str, Path]:
    """Every module by its name without the namespace, such as quant.recipe."""
    found = {}
    for folder in LEVELS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports() -> dict[str, set[str]]:
    """What each module imports, inside functions too: modules of ours, and names of others."""
    modules, found = sources(), {}
    for module, path in modules.items():
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}: imports are absolute"
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
        names = {name.removeprefix("dit8.") for name in names}
        ours = {known for name in names if (known := owner(name, modules)) and known != module}
        found[module] = ours | {name for name in names if owner(name, modules) is None}
    return found


def owner(name: str, modules: dict[str, Path]) -> str | None:
    """The module that a dotted name lives in: itself, or the one before its last word."""
    for candidate in (name, name.rpartition(".")[0]):
        if candidate in modules:
            return candidate
    return None


def top(module: str) -> str:
    return module.partition(".")[0]


def upward() -> set[str]:
    """Imports against the direction, and between the two at the bottom."""
    found = set()
    for module, names in imports().items():
        for name in names & sources().keys():
            here, there = top(module), top(name)
            if here != there and LEVELS[here] <= LEVELS[there]:
                found.add(f"{module} -> {name}")
    return found


def circles() -> set[str]:
    """Groups of modules that reach each other, as sorted names."""
    graph = {module: names & sources().keys() for module, names in imports().items()}
    reach = {module: set(names) for module, names in graph.items()}
    grown = True
    while grown:
        grown = False
        for names in reach.values():
            more = set().union(*(reach[name] for name in names)) - names if names else set()
            names |= more
            grown |= bool(more)
    groups = {
        frozenset(other for other in reach if other in reach[m] and m in reach[other])
        for m in reach
        if m in reach[m]
    }
    return {" <-> ".join(sorted(group)) for group in groups}


def command_line() -> set[str]:
    """Modules below scripts that import what only a command needs."""
    return {
        f"{module} -> {top(name)}"
        for module, names in imports().items()
        for name in names
        if top(module) != "scripts" and top(name) in COMMAND_LINE
    }


def helpers() -> set[str]:
    """Modules in scripts that another imports, apart from cli: commands are not imported."""
    used = set().union(*imports().values())
    return {m for m in sources() if top(m) == "scripts" and m in used} - {"scripts.cli"}


def classes() -> set[str]:
    """Public class names that two modules define."""
    found = Counter(
        node.name
        for path in sources().values()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    return {name for name, count in found.items() if count > 1}


def names() -> set[str]:
    """File names that two modules share; a command may have the name of what it starts."""
    found = Counter(m.rpartition(".")[2] for m in sources() if top(m) != "scripts")
    return {name for name, count in found.items() if count > 1}


def long_files() -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for path in (*sources().values(), *(ROOT / "tests").rglob("*.py"))
        if len(path.read_text(encoding="utf-8").splitlines()) > MAX_LINES
    }


RULES = (upward, circles, command_line, helpers, classes, names, long_files)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_has_no_exceptions_but_those_that_are_listed(rule):
    found, allowed = rule(), set(ALLOWED[rule.__name__])
    assert not found - allowed, f"new: {sorted(found - allowed)}"
    assert not allowed - found, f"mended, so take it off allowed.json: {sorted(allowed - found)}"


def test_the_list_names_only_rules():
    assert set(ALLOWED) == {rule.__name__ for rule in RULES}


def test_the_tracked_tree_can_travel():
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip(f"needs a git checkout: {listed.stderr.strip()}")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    size = sum(path.stat().st_size for path in files if path.is_file())
    assert 0 < size <= MAX_MIB * 2**20
