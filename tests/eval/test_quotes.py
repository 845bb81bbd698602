"""eval/quotes.py finds quoted texts, and no apostrophes or inches."""

import pytest

from eval.quotes import quoted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('a sign "OPEN" and " LATE "', ("OPEN", "LATE")),
        ("“A” „B“ „C” «D» 「E」 ‘F’", ("A", "B", "C", "D", "E", "F")),
        ("a sign 'OPEN' by the dogs' bowl", ("OPEN",)),
        ("'ROSIE'S CAFÉ', ‘it’s’", ("ROSIE'S CAFÉ", "it’s")),
        ('"it\'s" and \'say "hi"\'', ("it's", 'say "hi"')),
        ("rock 'n' roll, the cats' toys and dogs' beds", ()),
        ('a 5" screen beside a 7" one', ()),
        ('a 5" screen that says "GO"', ("GO",)),
        ('写着"开门"的海报', ("开门",)),
        ('"" " " "never closed', ()),
        ("", ()),
    ],
)
def test_quoted(text, expected):
    assert quoted(text) == expected
