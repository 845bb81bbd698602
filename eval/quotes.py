"""Find the texts that a plain sentence puts in quotes: what an idea wants to be lettered."""

import re

# A straight quote after a digit is a sign for inches; a single one opens and closes words only,
# and one between two letters is an apostrophe.
QUOTED = re.compile(
    r"""(?<![0-9])"([^"]+)" | “([^”]+)” | „([^“”]+)[“”] | «([^»]+)» | 「([^」]+)」"""
    r""" | ‘((?:[^‘’]|(?<=\w)’(?=\w))+)’ | (?<!\w)'((?:[^']|(?<=\w)'(?=\w)){2,})'(?!\w)""",
    re.VERBOSE,
)


def quoted(text: str) -> tuple[str, ...]:
    """Return the quoted parts of a text in order, white space around them aside.

    Quotes are "…", “…”, „…“, «…», 「…」, ‘…’ and, around two characters or more, '…'. What has
    no closing quote is not quoted.
    """
    found = (next(filter(None, match.groups())).strip() for match in QUOTED.finditer(text))
    return tuple(part for part in found if part)
