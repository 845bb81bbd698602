"""Find the texts that a plain sentence wants to be lettered: in quotes, or after "says"."""

import re

# A straight quote after a digit is a sign for inches; a single one opens and closes words only,
# and one between two letters is an apostrophe.
QUOTED = re.compile(
    r"""(?<![0-9])"([^"]+)" | “([^”]+)” | „([^“”]+)[“”] | «([^»]+)» | 「([^」]+)」"""
    r""" | ‘((?:[^‘’]|(?<=\w)’(?=\w))+)’ | (?<!\w)'((?:[^']|(?<=\w)'(?=\w)){2,})'(?!\w)""",
    re.VERBOSE,
)
# After these verbs stand the words to be lettered: all that follow in capitals, otherwise all up
# to a comma or one of ENDS. "reading" and "reads" have other meanings ("a girl reading a book").
CAPITALS = r"[^\W_a-z][^\W_a-z'&!?.-]+(?:\s+[^\W_a-z][^\W_a-z'&!?.-]*)*(?![\w'])"
ENDS = r"(?:in|on|with|over|under|above|below|against|at|by|for|and\s+(?:an?|the|two|three))\b"
SAID = re.compile(
    rf"\b(?:says?|saying|titled|with\s+the\s+(?:text|words?|title)|reads?|reading):?\s+({CAPITALS})"
    r"|\b(?:says?|saying|titled|with\s+the\s+(?:text|words?|title)):?\s+"
    rf"((?:(?!{ENDS})[\w'&!?-]+(?:\s+|(?=[.,;:)]|$)))+)"
)


def quoted(text: str) -> tuple[str, ...]:
    """Return the quoted parts of a text in order, white space around them aside.

    Quotes are "…", “…”, „…“, «…», 「…」, ‘…’ and, around two characters or more, '…'. What has
    no closing quote is not quoted.
    """
    return _parts(QUOTED, text)


def lettering(text: str) -> tuple[tuple[str, ...], str]:
    """Return the texts that a sentence wants lettered, and the sentence with "§" in their places.

    They are what is quoted; where nothing is, what follows "says", "saying", "titled", "with the
    text" and, if it stands in capitals, "reading".
    """
    for pattern in (QUOTED, SAID):
        if found := _parts(pattern, text):
            return found, pattern.sub(" § ", text)
    return (), text


def _parts(pattern: re.Pattern[str], text: str) -> tuple[str, ...]:
    found = (next(filter(None, match.groups())).strip() for match in pattern.finditer(text))
    return tuple(part for part in found if part)
