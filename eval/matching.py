"""Compare expected texts with what was read: free of order, each box used at most once.

A candidate is one box or a run of neighbouring boxes of one line, left to right, joined by a
space, because a detector may cut one text in two. Expected texts are assigned to candidates
so that the total cost is least, no box serves two texts, and a text left over costs 1. Boxes
left over cost nothing. Each score is the optimum of its own cost, so that ties between
assignments cannot change it. A text with a line break in it matches no single line: list its
lines as separate expected texts.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from rapidfuzz.distance import Levenshtein

from dit8.eval.reading import Box, Reading, read

# two boxes are on one line when they overlap vertically by this share of the smaller height
LINE_OVERLAP = 0.5


@dataclass(frozen=True)
class Candidate:
    """Hold a string that may answer an expected text, and the boxes it is made of."""

    text: str
    boxes: frozenset[int]


def normalize(text: str) -> str:
    """Return the text NFKC-normalized, without white space, casefolded."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(folded.split())


def distance(expected: str, found: str) -> float:
    """Return the Levenshtein distance over the longer length, in [0, 1]; 0 for two empties.

    ned(a, b) = lev(a, b) / max(len(a), len(b), 1). Texts are compared as they are given.
    """
    return Levenshtein.distance(expected, found) / max(len(expected), len(found), 1)


def lines(reading: Reading) -> list[list[int]]:
    """Group the boxes of a reading into lines.

    Boxes are taken from the top down; each joins the first line whose first box it overlaps
    vertically by at least half of the smaller height, else it opens a line.

    Returns:
        Box indices per line, left to right; every box is in exactly one line.
    """
    boxes = reading.boxes
    grouped: list[list[int]] = []
    for index in sorted(range(len(boxes)), key=lambda i: (boxes[i].top, boxes[i].left, i)):
        for line in grouped:
            if _on_one_line(boxes[line[0]], boxes[index]):
                line.append(index)
                break
        else:
            grouped.append([index])
    return [sorted(line, key=lambda i: (boxes[i].left, i)) for line in grouped]


def candidates(reading: Reading) -> list[Candidate]:
    """Return every box and every run of neighbouring boxes of a line, joined by a space."""
    return [
        Candidate(
            " ".join(reading.boxes[i].text for i in line[start:stop]), frozenset(line[start:stop])
        )
        for line in lines(reading)
        for start in range(len(line))
        for stop in range(start + 1, len(line) + 1)
    ]


def exact_fraction(expected: Sequence[str], reading: Reading) -> float:
    """Return the fraction of expected texts read exactly, both sides normalized."""
    return 1.0 - _mean_cost(expected, reading, normalize, _differs)


def mean_distance(expected: Sequence[str], reading: Reading) -> float:
    """Return the mean normalized edit distance of the expected texts, both sides normalized."""
    return _mean_cost(expected, reading, normalize, distance)


def strict_fraction(expected: Sequence[str], reading: Reading) -> float:
    """Return the fraction of expected texts read exactly, character by character as they are."""
    return 1.0 - _mean_cost(expected, reading, str, _differs)


def _mean_cost(
    expected: Sequence[str],
    reading: Reading,
    prepare: Callable[[str], str],
    cost_of: Callable[[str, str], float],
) -> float:
    if not expected:
        raise ValueError("matching: expected must hold at least one text, got none")
    found = candidates(reading)
    if not found:
        return 1.0
    answers = [prepare(candidate.text) for candidate in found]
    wanted = [prepare(text) for text in expected]
    cost = np.array([[cost_of(text, answer) for answer in answers] for text in wanted])
    chosen = _assign(cost, [candidate.boxes for candidate in found])
    matched = [cost[i, c] for i, c in chosen]
    return float((sum(matched) + len(expected) - len(matched)) / len(expected))


def _assign(cost: np.ndarray, box_sets: Sequence[frozenset[int]]) -> list[tuple[int, int]]:
    """Return (text, candidate) pairs of least total cost, disjoint in texts and in boxes.

    Maximizes sum of (1 - cost) x over binary x, each text and each box at most once: an
    assignment problem but for candidates that share boxes, hence an integer program.
    """
    n_texts, n_candidates = cost.shape
    gain = (1.0 - cost).ravel()
    if not gain.any():
        return []
    # row t < n_texts: text t is used; row n_texts + b: box b is used
    rows, columns = [], []
    for text in range(n_texts):
        for candidate, boxes in enumerate(box_sets):
            used = [text, *(n_texts + box for box in boxes)]
            rows += used
            columns += [text * n_candidates + candidate] * len(used)
    shape = (n_texts + 1 + max(max(boxes) for boxes in box_sets), gain.size)
    usage = scipy.sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape=shape).tocsr()
    result = scipy.optimize.milp(
        -gain,
        integrality=np.ones_like(gain),
        bounds=scipy.optimize.Bounds(0, 1),
        constraints=scipy.optimize.LinearConstraint(usage, ub=1),
        options={"mip_rel_gap": 0.0},  # the solver's default stops within 1e-4 of the optimum
    )
    assert result.success, f"matching: the assignment solver stopped: {result.message}"
    pairs = np.flatnonzero((result.x > 0.5) & (gain > 0))
    return [divmod(int(pair), n_candidates) for pair in pairs]


def _differs(expected: str, found: str) -> float:
    return float(expected != found)


def _on_one_line(first: Box, second: Box) -> bool:
    overlap = min(first.bottom, second.bottom) - max(first.top, second.top)
    smaller = min(first.bottom - first.top, second.bottom - second.top)
    return overlap > 0 and overlap >= LINE_OVERLAP * smaller


def read_one(item: tuple[np.ndarray, tuple[str, ...]]) -> tuple[float, float]:
    """Read one image, (H, W, 3) uint8, for its texts: `exact_fraction` and `mean_distance`."""
    pixels, texts = item
    reading = read(pixels)
    return exact_fraction(texts, reading), mean_distance(texts, reading)
