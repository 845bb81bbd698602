"""eval/expand_endpoint.py: asking, checking, asking again; the transport is replaced."""

import json

import pytest

from dit8.eval import expand_endpoint
from dit8.eval.caption_check import deviations
from dit8.eval.caption_schema import caption_schema
from dit8.eval.chat_endpoint import Endpoint
from dit8.eval.expand import expand
from dit8.eval.expand_endpoint import INSTRUCTION, EndpointExpander, endpoint_expander
from dit8.quant.errors import UserError

GOOD = (
    '{"compositional_deconstruction":{"background":"b","elements":'
    '[{"type":"text","text":"OPEN","desc":"d"}]}}'
)
IDEA = 'a sign "OPEN"'


@pytest.fixture
def asked(monkeypatch):
    """Replace the transport; returns the script of answers and the list of what was sent."""
    script, sent = [], []

    def ask(endpoint, messages, response_format):
        sent.append((json.loads(json.dumps(messages)), response_format))
        answer = script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(expand_endpoint, "ask", ask)
    return script, sent


EXPANDER = EndpointExpander(Endpoint("http://h/v1", "m", "secret"))


def test_a_valid_answer_is_taken_and_the_decoder_was_constrained(asked):
    script, sent = asked
    script += [json.dumps(json.loads(GOOD), indent=1)]
    assert EXPANDER.expand(IDEA) == GOOD
    ((messages, response_format),) = sent
    assert messages == [
        {"role": "system", "content": INSTRUCTION},
        {"role": "user", "content": f"Idea: {IDEA}"},
    ]
    assert response_format["type"] == "json_schema"
    assert response_format["json_schema"]["strict"] is True
    assert response_format["json_schema"]["schema"] == caption_schema()


def test_garbage_is_sent_back_with_its_deviations_until_it_is_mended(asked):
    script, sent = asked
    script += ["Sure! Here it is", GOOD.replace('"b"', "7").replace("OPEN", "SHUT"), GOOD]
    assert EXPANDER.expand(IDEA) == GOOD
    assert [len(messages) for messages, _ in sent] == [2, 4, 6]
    last = sent[-1][0]
    assert [m["role"] for m in last[2:]] == ["assistant", "user", "assistant", "user"]
    assert last[2]["content"] == "Sure! Here it is"
    assert "- caption: is not valid JSON" in last[3]["content"]
    assert (
        "- compositional_deconstruction.background: must be a string, got 7" in (last[5]["content"])
    )


def test_a_missing_quoted_text_is_sent_back(asked):
    script, sent = asked
    script += [GOOD.replace("OPEN", "SHUT"), GOOD]
    assert EXPANDER.expand(IDEA) == GOOD
    assert 'the idea quotes "OPEN", which no text element has' in sent[1][0][-1]["content"]


def test_three_bad_answers_are_an_error_with_the_last_problem(asked):
    script, sent = asked
    script += ["x", "y", GOOD.replace('"b"', "7").replace('"d"', "8"), GOOD]
    match = r"endpoint http://h/v1 \(model m\) gave no valid caption in 3 rounds for the idea 'a s"
    with pytest.raises(UserError, match=match + r".*background: must be .*\(and 1 more\); try"):
        EXPANDER.expand(IDEA)
    assert len(sent) == 3


def test_a_long_list_of_deviations_is_cut(asked):
    script, sent = asked
    content = json.loads(GOOD)
    content["compositional_deconstruction"]["elements"] *= 40
    script += [json.dumps(content | {"x": 1}).replace('"d"', "3"), GOOD]
    EXPANDER.expand(IDEA)
    assert sent[1][0][-1]["content"].count("\n- ") == 20


def test_an_error_of_the_transport_passes(asked):
    asked[0].append(UserError("endpoint is down"))
    with pytest.raises(UserError, match="endpoint is down"):
        EXPANDER.expand(IDEA)


def test_the_identity_tells_servers_and_models_apart_and_holds_no_key():
    identity = EXPANDER.identity()
    assert identity["url"] == "http://h/v1" and identity["model"] == "m"
    assert "secret" not in json.dumps(identity)
    other = EndpointExpander(Endpoint("http://h/v1", "m", "another key"))
    assert other.identity() == identity
    assert EndpointExpander(Endpoint("http://h/v1", "n")).identity() != identity


def test_answers_are_kept(asked, tmp_path):
    script, sent = asked
    script += [GOOD]
    assert expand(EXPANDER, IDEA, tmp_path) == expand(EXPANDER, IDEA, tmp_path) == GOOD
    assert len(sent) == 1
    assert "secret" not in "".join(p.read_text() for p in tmp_path.iterdir())


def test_without_an_address_it_says_what_to_set():
    with pytest.raises(UserError, match=r"endpoint is not available: .*DIT8_EXPAND_URL .*_MODEL"):
        expand(endpoint_expander({}), IDEA)
    environment = {"DIT8_EXPAND_URL": "http://h/v1", "DIT8_EXPAND_MODEL": "m"}
    assert endpoint_expander(environment).obstacle() is None


def test_the_instruction_shows_the_keys_in_the_order_of_the_schema():
    places = [INSTRUCTION.index(key) for key in caption_schema()["required"]]
    assert places == sorted(places)
    for name in ("Obj", "Text"):
        keys = caption_schema()["$defs"][name]["required"][1:]
        assert f'"type":"{name.lower()}",' + ",".join(f'"{key}"' for key in keys) in INSTRUCTION


def test_good_is_good():
    assert deviations(GOOD) == []
