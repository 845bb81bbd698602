"""Jobs that need the same scores, and what ends a sweep of evaluations."""

import threading

from dit8.eval import evaluate as evaluation
from dit8.eval.evaluate import prepare
from dit8.quant.files import locked
from dit8.scripts import evaluate as script
from dit8.scripts.cli import compose
from dit8.scripts.sweep import DONE, CellRecord


def test_who_waits_to_score_finds_the_scores(drawn, monkeypatch):
    """A job of another process holds the lock; this one reads the ledger after it."""
    config = compose("evaluate", [*drawn.place.evaluation, "variant=bf16"])
    cell, order, waiting = prepare(config), [], threading.Event()
    monkeypatch.setattr(evaluation, "print", lambda *_, **__: waiting.set(), raising=False)
    genuine = evaluation.score_run

    def watch(*given):
        order.append("scored here")
        return genuine(*given)

    monkeypatch.setattr(evaluation, "score_run", watch)
    with locked(cell.folder / "scoring"):
        thread = threading.Thread(target=evaluation.evaluate, args=(config,))
        thread.start()
        assert waiting.wait(30)
        order.append("scored elsewhere")
    thread.join(60)
    assert order == ["scored elsewhere", "scored here"]


def test_a_page_that_cannot_be_made_does_not_cost_the_sweep(drawn, monkeypatch, capsys):
    def broken(*_, **__):
        raise KeyError("a bug")

    monkeypatch.setattr(script, "report_all", broken)
    document = drawn.documents["int8"]
    asked = {"results": "r", "out": "o", "report": True, "readers": 1}
    told = script.finish([CellRecord(0, "variant=int8", DONE, 1.0, "", asked, document)])
    assert told["failed"] == {f"report of {document['reference']}": "KeyError: 'a bug'"}
    assert "Traceback" in capsys.readouterr().err
