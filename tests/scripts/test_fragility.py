import json

import pandas as pd
import pytest

from dit8.eval.fragility import COLUMNS


@pytest.fixture
def options(place):
    return [
        *(option for option in place.common if not option.startswith("calibration.n=")),
        f"results={place.folder / 'fragility'}",
        f"state={place.folder / 'state'}",
    ]


def read(place, name):
    return pd.read_csv(place.folder / "fragility" / f"{name}.csv")


def test_profiles_every_linear_of_both_branches(place, options, run_here):
    ended = run_here("fragility", *options)
    assert ended.code == 0, ended.stderr
    frame = read(place, "mini")
    assert tuple(frame.columns) == COLUMNS
    # 2 blocks of qkv, o, w1, w2, w3 and adaLN, the text projection and six outside
    assert ended.document["linears"] == 2 * (2 * 6 + 7)
    counts = frame.groupby(["branch", "linear"]).size()
    # absmax, crest, kurtosis, velocity at two steps each, and the latents; the unconditional
    # branch reads no text, so that kurtosis is undefined there
    assert set(counts) == {9, 7}
    assert counts[counts == 7].index.tolist() == [("unconditional", "llm_cond_proj")]
    damage = frame[frame["quantity"].isin(["damage_velocity", "damage_latents"])]
    silent = (damage["branch"] == "unconditional") & (damage["linear"] == "llm_cond_proj")
    assert (damage[silent]["value"] == 0).all()
    assert damage[~silent]["value"].between(1e-7, 0.5).all()
    assert sorted(frame["role"].unique()) == ["adaln", "o", "outside", "qkv", "text", "up", "w2"]
    report = (place.folder / "fragility" / "mini.md").read_text()
    assert ended.document["verdict"] in report and report in ended.stdout
    assert "| damage_latents | all | 38 |" in report
    assert (place.folder / "fragility" / "mini.svg").read_text().startswith("<?xml")


@pytest.fixture
def random_options(options):
    """A random model of one block: a second a run."""
    return [*options, "random=true", "full=false", "layers=1", "image_tokens=16", "text_tokens=5"]


def test_continues_where_it_stopped_and_repeats_bit_for_bit(place, random_options, run_here):
    assert run_here("fragility", *random_options).code == 0
    folder = place.folder / "fragility"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    (state,) = (place.folder / "state").iterdir()
    whole = json.loads(state.read_text())
    both, first_half, second_half = whole["moments"]
    assert first_half != second_half  # the halves are of different prompts
    for key, quantities in both.items():
        halves = (first_half[key]["absmax"], second_half[key]["absmax"])
        assert quantities["absmax"] == [max(pair) for pair in zip(*halves, strict=True)]
    part = {"moments": whole["moments"], "damage": dict(list(whole["damage"].items())[:9])}
    marked = next(iter(part["damage"]))
    # seen again below, so it was not measured anew
    part["damage"][marked] = {**whole["damage"][marked], "velocity": [[0.25] * 2] * 2}
    state.write_text(json.dumps(part))
    assert run_here("fragility", *random_options).code == 0
    assert json.loads(state.read_text())["damage"] == {**whole["damage"], **part["damage"]}
    branch, _, linear = marked.partition(".")
    frame = read(place, "random_small_1")
    row = frame[(frame["branch"] == branch) & (frame["linear"] == linear)]
    assert row[row["quantity"] == "damage_velocity"]["value"].tolist() == [0.25, 0.25]
    part["damage"][marked] = whole["damage"][marked]
    state.write_text(json.dumps(part))
    assert run_here("fragility", *random_options).code == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_stability_compares_the_two_halves_of_the_prompts(place, random_options, run_here):
    assert run_here("fragility", *random_options, "n=3").code == 0
    (state,) = (place.folder / "state").iterdir()
    found = json.loads(state.read_text())
    for index, damage in enumerate(found["damage"].values(), start=1):
        # two prompts in the first half, one in the second, which ranks the other way round
        damage["velocity"] = [[index, index], [index, index], [100 - index] * 2]
    for moments, sign in zip(found["moments"], (1, 1, -1), strict=True):
        for index, quantities in enumerate(moments.values()):
            quantities["crest"] = [50 + sign * index] * 2
    state.write_text(json.dumps(found))
    assert run_here("fragility", *random_options, "n=3").code == 0
    report = (place.folder / "fragility" / "random_small_1.md").read_text()
    assert "| damage_velocity | all | 26 | -1.00 | 0% |" in report
    assert "| crest | all | 26 | -1.00 | " in report
    frame = read(place, "random_small_1")
    last = frame[frame["quantity"] == "damage_velocity"]["value"].max()
    assert last == pytest.approx(((2 * 1**2 + 99**2) / 3) ** 0.5, rel=1e-5)  # six digits


def test_other_settings_start_anew(place, options, run_here):
    assert run_here("fragility", *options, "n=1", "latents=false").code == 0
    report = (place.folder / "fragility" / "mini.md").read_text()
    assert "One prompt has no halves." in report and "damage_latents" not in report
    assert run_here("fragility", *options, "n=1", "latents=false", "size=32").code == 0
    assert len(list((place.folder / "state").iterdir())) == 2


def test_random_model_needs_no_files(place, options, run_here):
    ended = run_here(
        "fragility", *options, "random=true", "full=false", "layers=3", "image_tokens=16",
        "text_tokens=5", "n=3", "calibration.dtype=bfloat16", "hardware.batch=4",
    )  # fmt: skip
    assert ended.code == 0, ended.stderr
    frame = read(place, "random_small_3_bfloat16")
    assert ended.document["linears"] == 2 * (3 * 6 + 7)
    assert "damage_latents" not in set(frame["quantity"])
    assert set(frame["step"]) == {0, 1}


def test_a_damaged_state_is_one_sentence(place, random_options, run_here, one_sentence):
    assert run_here("fragility", *random_options).code == 0
    (state,) = (place.folder / "state").iterdir()
    state.write_text("{")
    ended = run_here("fragility", *random_options)
    one_sentence(ended, "fragility", r"must hold JSON, got .*; delete it to start anew")


def test_refuses_an_empty_random_model(place, options, run_here, one_sentence):
    ended = run_here("fragility", *options, "random=true", "full=false", "layers=0")
    one_sentence(ended, "fragility", "must be at least 1, got 0, 2, 256 and 64; correct them")
