"""Where the strings of a JSON text stand: what `json.loads` forgets and a verifier needs.

A parser returns values; how they were spelled (white space, escapes, a key given twice) is gone.
This walks the tokens of a text that is known to be valid JSON and keeps the path of each.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[ \t\n\r]+|[^{}\[\]:,"\s]+')


@dataclass(frozen=True)
class Token:
    """One token of a JSON text.

    Args:
        source: as written, quotes and escapes included.
        path: of the value it belongs to, such as "a.b[0]"; a key belongs to the value it names;
            "" is the whole text.
        repeated: a key that its object had before.
    """

    source: str
    path: str
    repeated: bool = False


@dataclass
class _Open:
    """An object or list that the walk is inside of."""

    path: str
    is_object: bool
    key: str | None = None  # of the value that comes next; None: a key comes next
    index: int = 0
    keys: set[str] = field(default_factory=set)

    @property
    def here(self) -> str:
        if not self.is_object:
            return f"{self.path}[{self.index}]"
        if self.key is None:
            return self.path
        return f"{self.path}.{self.key}" if self.path else self.key


def tokens(text: str) -> Iterator[Token]:
    """Walk a text that `json.loads` accepts, in order; the tokens' sources joined are the text."""
    inside: list[_Open] = []
    for match in TOKEN.finditer(text):
        source = match.group()
        current = inside[-1] if inside else None
        path = current.here if current else ""
        if source[0] in "{[":
            yield Token(source, path)
            inside.append(_Open(path, source == "{"))
        elif source[0] in "}]":
            yield Token(source, inside.pop().path)
        elif source == ",":
            yield Token(source, current.path)
            current.key, current.index = None, current.index + 1
        elif source[0] == '"' and current is not None and current.is_object and current.key is None:
            current.key = json.loads(source)
            yield Token(source, current.here, repeated=current.key in current.keys)
            current.keys.add(current.key)
        else:
            yield Token(source, path)
