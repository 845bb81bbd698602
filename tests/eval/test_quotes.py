"""eval/quotes.py finds texts in quotes or after "says", and no apostrophes or inches."""

import pytest

from dit8.eval.quotes import lettering, quoted


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


@pytest.mark.parametrize(
    ("text", "expected", "rest"),
    [
        ("a poster that says HELLO", ("HELLO",), "a poster that § "),
        ("saying hello world on a red wall", ("hello world",), "§ on a red wall"),
        ("it says GOOD DAY to all", ("GOOD DAY",), "it § to all"),
        ("with the text Happy Birthday, two circles", ("Happy Birthday",), "§ , two circles"),
        ("a sign reading OPEN in blue", ("OPEN",), "a sign § in blue"),
        ("it says I love you", ("I love you",), "it § "),
        ("a girl reading a book", (), "a girl reading a book"),
        ('a man says hi to "ME"', ("ME",), "a man says hi to § "),
    ],
)
def test_lettering(text, expected, rest):
    texts, left = lettering(text)
    assert texts == expected
    assert left.split() == rest.split()
