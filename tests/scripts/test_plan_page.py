"""docs/reproduce.md: its numbers are what the plans print."""

import pytest

from dit8.quant.errors import UserError
from dit8.scripts import plan_page
from dit8.scripts.plan_page import PAGE, fill, make_plans


def test_the_page_is_what_the_plans_print():
    text = PAGE.read_text(encoding="utf-8")
    assert fill(text) == text
    assert text.count("<!-- plan: ") == 2


def test_every_step_stands_on_the_page_with_its_cost():
    plans, refused = make_plans()
    text = PAGE.read_text(encoding="utf-8")
    assert {plan.request.table for plan in plans} | set(refused) == set(range(1, 10))
    for plan in plans:
        for step in plan.steps:
            assert f"\n       python {' '.join(step.words)}\n" in text


def test_a_stale_number_is_renewed(tmp_path, monkeypatch, capsys):
    text = PAGE.read_text(encoding="utf-8")
    stale = text.replace(" GB on disk", " TB on disk")
    assert stale != text
    page = tmp_path / "reproduce.md"
    page.write_text(stale, encoding="utf-8")
    monkeypatch.setattr(plan_page, "PAGE", page)
    plan_page.main()
    assert page.read_text(encoding="utf-8") == text
    assert capsys.readouterr().out.startswith('{"page": ')


def test_a_block_of_another_name_is_named():
    with pytest.raises(UserError, match="must name a plan of tables, steps, got 'tabels'; correct"):
        fill("<!-- plan: tabels -->\n<!-- end -->")
