"""eval/expand.py: reviewing answers and keeping them."""

import json
from dataclasses import dataclass, field

import pytest

from dit8.eval.expand import expand, review
from dit8.quant.errors import UserError


def caption(*texts: str, **style) -> str:
    elements = [{"type": "obj", "desc": "a cup"}]
    elements += [{"type": "text", "text": text, "desc": "bold"} for text in texts]
    content = {"background": "black", "elements": elements}
    return json.dumps(
        style | {"compositional_deconstruction": content},
        ensure_ascii=False,
        separators=(",", ":"),
    )


@dataclass
class Counting:
    """Answers with its own number of calls."""

    version: int = 1
    lacks: str | None = None
    asked: list[str] = field(default_factory=list)
    name: str = "counting"

    def obstacle(self):
        return self.lacks

    def identity(self):
        return {"version": self.version}

    def expand(self, idea):
        self.asked.append(idea)
        return caption(f"{len(self.asked)} é")


def test_the_same_idea_is_asked_once_and_kept_in_a_file(tmp_path):
    expander, cache = Counting(), tmp_path / "deep" / "cache"
    first = expand(expander, "  a  cup\n", cache)
    assert expand(expander, "a cup", cache) == first == caption("1 é")
    assert expander.asked == ["a cup"]
    (path,) = cache.iterdir()
    assert json.loads(path.read_text(encoding="utf-8"))["idea"] == "a cup"
    assert "é" in path.read_text(encoding="utf-8")


def test_another_idea_and_another_expander_are_asked(tmp_path):
    expander = Counting()
    expand(expander, "a cup", tmp_path)
    assert expand(expander, "a mug", tmp_path) == caption("2 é")
    assert expand(Counting(version=2), "a cup", tmp_path) == caption("1 é")
    other = Counting(name="other")
    expand(other, "a cup", tmp_path)
    assert other.asked == ["a cup"]
    assert len(list(tmp_path.iterdir())) == 4


def test_without_a_cache_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expander = Counting()
    expand(expander, "a cup")
    expand(expander, "a cup")
    assert len(expander.asked) == 2 and not list(tmp_path.iterdir())


def test_a_failed_idea_keeps_nothing(tmp_path):
    class Failing(Counting):
        def expand(self, idea):
            raise UserError("no")

    with pytest.raises(UserError, match="no"):
        expand(Failing(), "a cup", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"caption":3}', '{"caption":"{}"}'])
def test_a_damaged_file_of_the_cache_is_named(tmp_path, damage):
    expand(Counting(), "a cup", tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(damage, encoding="utf-8")
    with pytest.raises(UserError, match=rf"{path.name} must hold a caption that was kept, got .*"):
        expand(Counting(), "a cup", tmp_path)


def test_a_file_that_answers_another_idea_is_named(tmp_path):
    expand(Counting(), "a cup", tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text(encoding="utf-8").replace("a cup", "a mug", 1))
    with pytest.raises(UserError, match=r"must answer the idea 'a cup', got one for 'a mug'; del"):
        expand(Counting(), "a cup", tmp_path)


def test_an_empty_idea_and_an_obstacle_are_named_before_anything_is_asked(tmp_path):
    expander = Counting(lacks="not available: it is Sunday; wait")
    with pytest.raises(UserError, match="^expand: the idea must say something"):
        expand(Counting(), " \n", tmp_path)
    with pytest.raises(UserError, match="^expander counting is not available: it is Sunday; wait$"):
        expand(expander, "a cup", tmp_path)
    assert expander.asked == []


def test_review_repairs_spelling():
    answer = f"\n {json.dumps(json.loads(caption('é')), indent=1)}\n"
    assert review(answer, "a cup") == (caption("é"), [])


def test_review_lists_every_deviation_of_content():
    bad = json.loads(caption("A"))
    bad["mood"] = 1
    bad["compositional_deconstruction"]["background"] = None
    got, problems = review(json.dumps(bad, separators=(",", ":")), "a cup")
    assert got is None
    assert problems == [
        "mood: is no key of the schema here",
        "compositional_deconstruction.background: must be a string, got null",
    ]


def test_review_wants_every_quoted_text_lettered():
    idea = 'a cup that says "Good Day" and "bye"'
    assert review(caption("GOOD\nDAY", "bye!"), idea)[1] == []
    got, problems = review(caption("GOOD", "Day"), idea)  # each text in one element
    assert got is None
    assert problems == [
        'the idea quotes "Good Day", which no text element has',
        'the idea quotes "bye", which no text element has',
    ]


def test_review_wants_an_element():
    empty = '{"compositional_deconstruction":{"background":"b","elements":[]}}'
    assert review(empty, "x")[1] == [
        "compositional_deconstruction.elements: must have at least one element"
    ]
