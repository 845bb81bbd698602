import pandas as pd

from dit8.models.training.curves import LOSS, OCR, Curves


def test_rows_keep_their_columns_and_a_resumed_run_goes_on_below(tmp_path, capsys):
    folder = tmp_path / "new" / "curves"
    Curves(folder).loss(stage="vae", step=1, samples=64, loss=1 / 3, lr=0.5)
    again = Curves(folder)
    again.loss(stage="vae", step=100, samples=6400, loss=0.25, lr=0.5, samples_per_s=12.0)
    rows = pd.read_csv(folder / "loss.csv")
    assert tuple(rows.columns) == LOSS
    assert rows["step"].tolist() == [1, 100] and rows["samples"].tolist() == [64, 6400]
    assert rows["loss"].tolist() == [0.333333, 0.25]  # six digits
    assert rows["samples_per_s"].isna().tolist() == [True, False]
    assert (rows["seconds"] >= 0).all()
    assert "step=100" in capsys.readouterr().out


def test_the_reading_arrives_with_what_was_fixed(tmp_path):
    curves = Curves(tmp_path)
    late = curves.ocr(stage="conditional", tier="hard", step=200, samples=800, n=64)
    curves.ocr(stage="reconstruction", tier="easy", step=9, n=4, psnr_db=34.5)(1.0, 0.0)
    late(0.625, 0.125)
    rows = pd.read_csv(tmp_path / "ocr.csv")
    assert tuple(rows.columns) == OCR
    assert rows["tier"].tolist() == ["easy", "hard"]
    assert rows["ocr_exact"].tolist() == [1.0, 0.625]
    assert rows["ocr_ned"].tolist() == [0.0, 0.125]
    assert rows["psnr_db"].isna().tolist() == [False, True]
    assert rows["n"].tolist() == [4, 64]
