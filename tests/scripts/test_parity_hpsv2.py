import pandas as pd
import pytest

from dit8.quant.errors import UserError
from dit8.scripts import parity_hpsv2
from dit8.scripts.parity_hpsv2 import LARGEST, check, make_environment


def test_an_environment_that_is_complete_is_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(parity_hpsv2, "_run", lambda command: pytest.fail("nothing may run"))
    (tmp_path / ".complete").touch()
    assert make_environment(tmp_path) == tmp_path / "bin" / "python"


def test_another_wheel_is_refused_and_nothing_is_installed(tmp_path, monkeypatch):
    def run(command):
        assert "download" in command, "a package that was not examined must not be installed"
        place = command[command.index("--dest") + 1]
        (parity_hpsv2.Path(place) / "hpsv2-1.2.0-py3-none-any.whl").write_bytes(b"other")
        return ""

    monkeypatch.setattr(parity_hpsv2, "_run", run)
    with pytest.raises(UserError, match=r"hpsv2-1.2.0-py3-none-any.whl must have the sha256 3ee6"):
        make_environment(tmp_path / "env")
    assert not (tmp_path / "env" / ".complete").exists()


def test_a_failed_step_is_one_sentence():
    with pytest.raises(UserError, match=r"false must succeed, got '\?'; hpsv2 is only needed for"):
        parity_hpsv2._run(["false"])


def frame(difference, quantity="score"):
    rows = [("token ids", "text 0", 0.0), (quantity, "256x256", difference)]
    return pd.DataFrame(rows, columns=["quantity", "case", "difference"])


@pytest.mark.parametrize("difference", [2 * LARGEST, float("nan")])
def test_a_difference_is_a_failure(difference):
    check(frame(LARGEST))
    with pytest.raises(UserError, match="score of 256x256 must agree .* got a difference of"):
        check(frame(difference))


def test_tokens_must_be_the_same():
    with pytest.raises(UserError, match="token ids of 256x256 must agree"):
        check(frame(LARGEST / 2, "token ids"))


def test_the_committed_comparison_passes():
    rows = pd.read_csv(parity_hpsv2.ROOT / "results" / "parity" / "hpsv2.csv")
    check(rows)
    assert set(rows["quantity"]) == {
        *("token ids", "text features", "prepared picture", "image features", "score")
    }
