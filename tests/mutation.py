"""Mutants: changes of the source in one place, named to outlive a move, and tests that reach them.

A mutant is one of: a comparison flipped (`compare`), a number plus one (`const`), + and - or * and
/ exchanged (`sign`), min and max exchanged (`minmax`), min(a, b) or max(a, b) reduced to a
(`drop`), two neighbouring positional arguments exchanged (`swap`), `and` and `or` exchanged
(`bool`), `not` dropped (`not`), True and False exchanged (`flag`). It replaces the text of a node
and keeps all line numbers. Left out: annotations, decorators, messages (f-strings, raise, print),
code that runs on a GPU only, and what leaves the compiled code as it is.

Names. `quant/smoothing_scale/compare/2` is the second comparison of that function in the area
`quant` of AREAS; `Class.method` for methods; a constant of a module or class is named after its
target. Path and line are not in it, so a moved file keeps its mutants. Of functions with one name
in an area each gets `@` and a hash of its source (without the import prefix `dit8.`): an edit of
one renames the mutants of that one only. A sample is the n names with the smallest hash of (seed,
name): moves leave it as it is, and an edit exchanges mutants of the edited function alone.
"""

import ast
import fnmatch
import hashlib
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

# area -> globs of its files, without a leading dit8/ or src/dit8/; * also matches a slash
AREAS = {
    "quant": ("quant/*.py",),
    "kernels": ("kernels/*.py",),
    "eval": (
        *(f"eval/{name}.py" for name in ("stats", "verdict", "equivalence", "power")),
        *(f"eval/{name}.py" for name in ("exact_match", "margins", "noise_floor")),
        *("eval/newest.py", "eval/reproduce/runs.py", "eval/model_runs.py"),  # they select runs
    ),
}
# what runs on a GPU only, and the choice of what is launched there
NOT_FILES = (*("*_triton.py", "*_gluon.py", "*_tma.py"), "kernels/tiles.py", "kernels/shipped.py")
NOT_UNITS = re.compile(r"_launch\w*|\w+_cuda|describe|(.*\.)?__(repr|str)__")  # GPU only, messages
PREFIX = re.compile(r"^(src/)?dit8[./]")
# a changed value of these changes no result
NOT_KEYWORDS = {"indent", "stacklevel", "non_blocking", "maxsize", "repr"}
MESSAGES = {"print", "warn", "info", "warning", "debug"}
# calls that do not care for the order of two arguments, and those that no swap lets return
NOT_SWAPPED = {*("min", "max", "minimum", "maximum", "equal", "allclose", "isclose", "gcd")}
NOT_SWAPPED |= {"isinstance", "getattr", "hasattr", "setattr", "logical_and", "logical_or"}
OPERATORS = {
    **{ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">")},
    **{ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not")},
    **{ast.IsNot: (r"is\s+not", "is"), ast.In: ("in", "not in"), ast.NotIn: (r"not\s+in", "in")},
    **{ast.Add: (r"\+", "-"), ast.Sub: ("-", "+"), ast.Mult: (r"\*", "/"), ast.Div: ("/", "*")},
    **{ast.FloorDiv: ("//", "*"), ast.And: ("and", "or"), ast.Or: ("or", "and")},
}
EXTREMES = {"min": "max", "amin": "amax", "minimum": "maximum"}
EXTREMES |= {new: old for old, new in EXTREMES.items()}


@dataclass(frozen=True)
class Mutant:
    """One change: bytes start to end of the file become `text`."""

    name: str  # area/unit/kind/occurrence
    path: str
    start: int
    end: int
    text: bytes

    def apply(self, source: bytes) -> bytes:
        """Return the changed file."""
        return source[: self.start] + self.text + source[self.end :]


def units(body: Iterable[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.stmt]]:
    """Name the functions, methods and named values of a module or class."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from units(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name):
                yield prefix + target.id, node


def called(node: ast.AST) -> str:
    """Return the last name of what a call calls, empty for anything else."""
    function = getattr(node, "func", None)
    return getattr(function, "attr", getattr(function, "id", ""))


def inner(node: ast.AST) -> Iterator[ast.AST]:
    """List a node and all below it that may be changed."""
    if isinstance(node, ast.JoinedStr | ast.Raise) or called(node) in MESSAGES:
        return
    if isinstance(node, ast.keyword) and node.arg in NOT_KEYWORDS:
        return
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        return
    if isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]) in ("'cpu'", "'cuda'"):
        return  # both paths give the same numbers
    yield node
    for field, value in ast.iter_fields(node):
        if field not in ("decorator_list", "annotation", "returns", "msg"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from inner(child)


def edits(node: ast.AST, source: bytes, at: list[int]) -> Iterator[tuple[str, int, int, bytes]]:
    """List the changes of one node: kind, first byte, last byte + 1, new text.

    Args:
        at: first byte of every line.
    """

    def span(node) -> tuple[int, int]:
        end = at[node.end_lineno - 1] + node.end_col_offset
        return at[node.lineno - 1] + node.col_offset, end

    def operator(kind: str, operator: ast.AST, start: int, end: int):
        if type(operator) in OPERATORS:
            old, new = OPERATORS[type(operator)]
            # a comment between the operands may hold the operator too
            found = re.match(rf"(?:[\s()\\]|#.*\n)*({old})".encode(), source[start:end])
            if found:
                yield kind, start + found.start(1), start + found.end(1), new.encode()

    def shortened(node, kept):
        (start, end), (first, last) = span(node), span(kept)
        lines = source[start:end].count(b"\n") - source[first:last].count(b"\n")
        return start, end, b"(" + source[first:last] + b"\n" * lines + b")"

    match node:
        case ast.Compare():
            sides = [node.left, *node.comparators]
            for left, op, right in zip(sides, node.ops, sides[1:], strict=False):
                yield from operator("compare", op, span(left)[1], span(right)[0])
        case ast.BoolOp():
            for left, right in zip(node.values, node.values[1:], strict=False):
                yield from operator("bool", node.op, span(left)[1], span(right)[0])
        case ast.BinOp() if not any(
            isinstance(side, ast.JoinedStr) or isinstance(getattr(side, "value", 0), str | bytes)
            for side in (node.left, node.right)
        ):
            yield from operator("sign", node.op, span(node.left)[1], span(node.right)[0])
        case ast.AugAssign():
            yield from operator("sign", node.op, span(node.target)[1], span(node.value)[0])
        case ast.UnaryOp(op=ast.USub()):
            yield "sign", span(node)[0], span(node)[0] + 1, b"+"
        case ast.UnaryOp(op=ast.Not()):
            yield "not", *shortened(node, node.operand)
        case ast.Constant(value=bool()):
            yield "flag", *span(node), str(not node.value).encode()
        case ast.Constant(value=int() | float()):
            yield "const", *span(node), repr(node.value + 1).encode()
        case ast.keyword(arg="min" | "max"):  # of clamp
            start = span(node)[0]
            yield "minmax", start, start + 3, EXTREMES[node.arg].encode()
        case ast.Call():
            name, end = called(node), span(node.func)[1]
            if name in EXTREMES:
                yield "minmax", end - len(name), end, EXTREMES[name].encode()
            plain = [not isinstance(argument, ast.Starred) for argument in node.args]
            if name in ("min", "max") and len(plain) > 1 and plain[0]:
                yield "drop", *shortened(node, node.args[0])
            for left, right in zip(node.args, node.args[1:], strict=False):
                (a, b), (c, d) = span(left), span(right)
                swapped = source[c:d] + source[b:c] + source[a:b]
                starred = isinstance(left, ast.Starred) or isinstance(right, ast.Starred)
                if not starred and name not in NOT_SWAPPED and swapped != source[a:d]:
                    yield "swap", a, d, swapped


def candidates(sources: Mapping[str, bytes]) -> list[Mutant]:
    """List all mutants of the files of AREAS by name; sources: path -> text."""
    found = defaultdict(list)  # area, unit -> (hash, path, mutants without a name)
    for path, source in sorted(sources.items()):
        at = [0]
        for line in source.splitlines(keepends=True):
            at.append(at[-1] + len(line))
        for area in (area for area, globs in AREAS.items() if selects(globs, path)):
            for unit, node in units(ast.parse(source).body):
                if NOT_UNITS.fullmatch(unit):
                    continue
                start, end = at[node.lineno - 1], at[node.end_lineno - 1] + node.end_col_offset
                body = re.sub(rb"\bdit8\.", b"", source[start:end])
                changes = {edit for child in inner(node) for edit in edits(child, source, at)}
                digest = hashlib.sha256(body).hexdigest()[:6]
                found[area, unit].append((digest, path, sorted(changes, key=lambda e: e[1:])))
    mutants = []
    for (area, unit), same in found.items():
        seen = Counter()
        for digest, path, changes in same:
            seen[digest] += 1  # of equal functions with equal text the path decides
            label = unit if len(same) == 1 else f"{unit}@{digest}" + "'" * (seen[digest] - 1)
            count = Counter()
            for kind, *change in changes:
                count[kind] += 1
                mutants.append(Mutant(f"{area}/{label}/{kind}/{count[kind]}", path, *change))
    return sorted(mutants, key=lambda mutant: mutant.name)


def selects(globs: Iterable[str], path: str) -> bool:
    """Tell whether a path is one of an area."""
    path = PREFIX.sub("", path)
    matches = [any(fnmatch.fnmatch(path, glob) for glob in some) for some in (globs, NOT_FILES)]
    return matches == [True, False]


def draw(
    mutants: Iterable[Mutant], sources: Mapping[str, bytes], n: int, seed: int
) -> list[Mutant]:
    """Return the n mutants with the smallest hash of (seed, name) that change the compiled code.

    Fewer than n where there are no more.
    """

    def order(mutant: Mutant) -> str:
        return hashlib.sha256(f"{seed}/{mutant.name}".encode()).hexdigest()

    drawn, before = [], {}
    for mutant in sorted(mutants, key=order):
        if len(drawn) == n:
            break
        path, source = mutant.path, sources[mutant.path]
        before[path] = before.get(path) or compiled(source)
        if before[path] != compiled(mutant.apply(source)):
            drawn.append(mutant)
    return drawn


def compiled(source: bytes) -> object:
    """Return what a file compiles to, without the positions."""

    def parts(code):
        consts = [parts(c) if hasattr(c, "co_code") else (type(c), repr(c)) for c in code.co_consts]
        return code.co_code, code.co_names, code.co_varnames, consts

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return parts(compile(source, "mutant", "exec", dont_inherit=True))


def module_of(path: str) -> str:
    """Return the name that a file is imported by, without the prefix dit8."""
    name = PREFIX.sub("", path).removesuffix(".py").replace("/", ".")
    return name.removesuffix(".__init__")


def imports(module: str, source: bytes) -> set[str]:
    """Return every name that a file may import as a module, without the prefix dit8."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return {PREFIX.sub("", name) for name in found}


def tests_by_module(sources: Mapping[str, bytes]) -> dict[str, list[str]]:
    """Return path -> test files that reach it, nearest first; sources: of all Python files.

    A test file imports the conftest.py of its folder and those above; it also reaches the file that
    it is named after, which it may start as a command: tests/scripts/test_demo.py scripts/demo.py.
    """
    paths = {module_of(path): path for path in sources}
    importers = defaultdict(set)  # path -> paths
    mirrored = {}
    for path, source in sources.items():
        names = imports(module_of(path), source)
        if is_test(path):
            folders = PurePosixPath(path).parents
            names |= {module_of(str(folder / "conftest.py")) for folder in folders}
            mirrored[path] = module_of(path).removeprefix("tests.").replace("test_", "")
            names.add(mirrored[path])
        for name in names & paths.keys():
            importers[paths[name]].add(path)
    found = {}
    for module, path in paths.items():
        distance, ring = {path: 0}, [path]
        while ring:
            ring = sorted({near for far in ring for near in importers[far]} - distance.keys())
            distance |= dict.fromkeys(ring, max(distance.values()) + 1)
        rank = {  # the folder of tests, where the distance is the same
            test: (mirrored[test] != module, steps, f"tests.{module}"[:9] != module_of(test)[:9])
            for test, steps in distance.items()
            if is_test(test)
        }
        found[path] = sorted(rank, key=lambda test: (rank[test], test))
    return found


def is_test(path: str) -> bool:
    """Tell whether pytest collects a file."""
    return bool(re.fullmatch(r"tests/(.*/)?test_\w+\.py", path))
