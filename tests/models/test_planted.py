import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import dit8.models.planted as planted_module
from dit8.models.pipeline import load_pipeline
from dit8.models.planted import RECORD, check_planted, plant_model
from dit8.quant.architectures.ideogram4 import BRANCHES, architecture
from dit8.quant.errors import UserError

OPTIONS = {"seed": 3, "fraction": 0.02, "factors": (8.0, 16.0, 32.0, 64.0)}


@pytest.fixture(scope="module")
def planted_folder(toy_folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("planted") / "deeper" / "mini_planted"
    plant_model(toy_folder, target, **OPTIONS)
    return target


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def weights(folder, branch):
    return load_file(folder / BRANCHES[branch] / "diffusion_pytorch_model.safetensors")


def test_both_branches_compute_the_same_bits(planted_folder, toy, record_branches):
    planted = load_pipeline(planted_folder, "float32", "float32", torch.device("cpu"))
    before, after = record_branches(toy), record_branches(planted)
    for branch in BRANCHES:
        assert len(before[branch]) == 2  # steps
        for a, b in zip(before[branch], after[branch], strict=True):
            assert torch.equal(a.output, b.output)


def test_activations_have_the_outliers_that_the_record_names(planted_folder, toy):
    planted = load_pipeline(planted_folder, "float32", "float32", torch.device("cpu"))
    record = json.loads((planted_folder / RECORD).read_text())
    for branch, attribute in BRANCHES.items():
        groups = [group for group in architecture(2).groups if group.source is not None]
        assert set(record[branch]) == {group.name for group in groups}
        old, new = getattr(toy, attribute).state_dict(), getattr(planted, attribute).state_dict()
        for group in groups:
            name = f"{group.targets[0]}.weight"
            ratio = torch.ones(old[name].shape[1])
            for channel, factor in record[branch][group.name].items():
                ratio[int(channel)] = factor
            # columns shrink as the activation grows; rows of to_v and w3 grow by their own group
            columns = old[name].abs().amax(0) / new[name].abs().amax(0)
            rows = any(group.targets[0] == other.source for other in groups)
            assert torch.equal(columns, ratio) or rows
            assert len(record[branch][group.name]) == max(1, round(0.02 * len(ratio)))
    assert record["conditional"] != record["unconditional"]
    assert (record["seed"], record["factors"]) == (3, [8, 16, 32, 64])


def test_nothing_but_the_branches_weights_changes(planted_folder, toy_folder):
    before, after = digests(toy_folder), digests(planted_folder)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {f"{a}/diffusion_pytorch_model.safetensors" for a in BRANCHES.values()}
    assert set(after) - set(before) == {RECORD}
    for branch in BRANCHES:
        old, new = weights(toy_folder, branch), weights(planted_folder, branch)
        assert {n: (t.shape, t.dtype) for n, t in old.items()} == {
            n: (t.shape, t.dtype) for n, t in new.items()
        }


def test_the_same_seed_plants_the_same(toy_folder, planted_folder, tmp_path):
    plant_model(toy_folder, tmp_path / "again", **OPTIONS)
    assert digests(tmp_path / "again") == digests(planted_folder)
    plant_model(toy_folder, tmp_path / "other", **OPTIONS | {"seed": 4})
    other, first = (
        weights(tmp_path / "other", "conditional"),
        weights(planted_folder, "conditional"),
    )
    assert any(not torch.equal(other[name], first[name]) for name in first)


def test_a_failure_in_the_second_branch_leaves_nothing(toy_folder, tmp_path, monkeypatch):
    written = []

    def fail_later(tensors, path, **options):
        written.append(path)
        if len(written) == 2:
            raise RuntimeError("power cut")
        save_file(tensors, path, **options)

    monkeypatch.setattr(planted_module, "save_file", fail_later)
    with pytest.raises(RuntimeError, match="power cut"):
        plant_model(toy_folder, tmp_path / "planted", **OPTIONS)
    assert len(written) == 2 and list(tmp_path.iterdir()) == []


def test_a_factor_that_would_change_the_function_leaves_nothing(toy_folder, tmp_path):
    with pytest.raises(ValueError, match="factors must be powers of two"):
        plant_model(toy_folder, tmp_path / "planted", **OPTIONS | {"factors": (3.0,)})
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_run_do_not_get_in(toy_folder, planted_folder, tmp_path):
    partial = tmp_path / ".planted.partial"
    partial.mkdir()
    (partial / "stray").write_text("")
    plant_model(toy_folder, tmp_path / "planted", **OPTIONS)
    assert digests(tmp_path / "planted") == digests(planted_folder)
    assert [path.name for path in tmp_path.iterdir()] == ["planted"]


def test_planting_refuses_a_bad_source_or_an_existing_target(toy_folder, tmp_path):
    with pytest.raises(UserError, match=r"source .*none must be a diffusers folder, got none"):
        plant_model(tmp_path / "none", tmp_path / "planted", **OPTIONS)
    (tmp_path / "planted").mkdir()
    with pytest.raises(UserError, match="planted exists already; delete it to derive it again"):
        plant_model(toy_folder, tmp_path / "planted", **OPTIONS)
    assert list((tmp_path / "planted").iterdir()) == []


def test_a_folder_of_another_plan_is_refused(planted_folder, toy_folder):
    check_planted(planted_folder, **OPTIONS)
    for change in ({"seed": 4}, {"fraction": 0.01}, {"factors": (8.0,)}):
        with pytest.raises(UserError, match=r"must be planted with .*got .*delete it or set"):
            check_planted(planted_folder, **OPTIONS | change)
    with pytest.raises(UserError, match=r"must hold a planted model with planted.json, got none"):
        check_planted(toy_folder, **OPTIONS)
