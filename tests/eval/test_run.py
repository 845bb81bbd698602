import io
import json
import tarfile

import pytest
import torch
from PIL import Image

from dit8.eval.run import RECORD, RunKey, pack_run, read_run, unpack_run, write_run_record
from dit8.models.generate import find_sample, sample_paths, save_sample
from dit8.models.types import Prompt
from dit8.quant.errors import UserError

KEY = RunKey(
    "0123456789ab", "mini", "int8", "smoothquant", "torch", "float32", "torch-cpu", "mini_easy"
)
PROMPTS = [
    Prompt("easy-000", '{"a":"É"}', ("RUBE",), 7),
    Prompt("easy-001", "{}", ("HF9", "XMV8"), 8),
]


@pytest.fixture
def folder(tmp_path):
    """A finished run of two pictures."""
    folder = tmp_path / "images" / KEY.run_id
    write_run_record(folder, KEY, PROMPTS, "ba9876543210")
    for shade, prompt in enumerate(PROMPTS):
        image = Image.new("RGB", (16, 16), (shade, 9, 9))
        save_sample(prompt, image, torch.full((1, 64), float(shade)), folder, {"seconds": 0.25})
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_comes_back_as_it_was_written(folder):
    run = read_run(folder)
    assert run.key == KEY and run.reference == "ba9876543210"
    assert [sample.key for sample in run.samples] == [("easy-000", 7), ("easy-001", 8)]
    assert [sample.texts for sample in run.samples] == [("RUBE",), ("HF9", "XMV8")]
    assert [sample.seconds for sample in run.samples] == [0.25, 0.25]
    paths = [(sample.image_path, sample.latents_path) for sample in run.samples]
    assert paths == [sample_paths(prompt, folder) for prompt in PROMPTS]


def test_the_record_stands_before_the_pictures(tmp_path):
    write_run_record(tmp_path / "new" / "run", KEY, PROMPTS, None)
    record = json.loads((tmp_path / "new" / "run" / RECORD).read_text(encoding="utf-8"))
    assert record["key"]["run_id"] == KEY.run_id and record["reference"] is None
    assert record["prompts"][0]["caption"] == '{"a":"É"}'


def test_an_unfinished_run_names_what_it_lacks(folder):
    sample_paths(PROMPTS[1], folder)[0].unlink()
    match = "run 0123456789ab lacks 1 of 2 pictures, first easy-001; run scripts/evaluate.py again"
    with pytest.raises(UserError, match=match):
        read_run(folder)


def test_a_damaged_picture_is_left_to_those_who_look_at_it(folder):
    path = sample_paths(PROMPTS[1], folder)[0]
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"IDAT") + 10])  # within the pixels
    with pytest.raises(UserError, match="must be a picture written by dit8, got OSError"):
        find_sample(PROMPTS[1], folder)
    assert [sample.seconds for sample in read_run(folder).samples] == [0.25, 0.25]
    path.write_bytes(whole[:40])  # before the metadata
    with pytest.raises(UserError, match=f"{path.name} must be a picture written by dit8, got"):
        read_run(folder)


@pytest.mark.parametrize(
    "text", [None, "{", "[]", "{}", '{"key": {"run_id": "x"}, "prompts": [], "reference": null}']
)
def test_a_folder_without_a_run_is_one_sentence(tmp_path, text):
    if text is not None:
        (tmp_path / RECORD).write_text(text)
    with pytest.raises(UserError, match=r"run.json must describe a run, got \w+.*; pass a folder"):
        read_run(tmp_path)


def test_a_packed_run_travels_whole(folder, tmp_path):
    (folder / ".easy-002_9.png.12.tmp").write_bytes(b"half")
    archive = pack_run(folder)
    assert archive == folder.with_name("0123456789ab.tar")
    there = unpack_run(archive, tmp_path / "elsewhere")
    assert there == tmp_path / "elsewhere" / KEY.run_id
    whole = contents(folder)
    del whole[".easy-002_9.png.12.tmp"]
    assert contents(there) == whole
    assert read_run(there).key == KEY


def write_archive(path, names):
    with tarfile.open(path, "w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
    return path


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (("a/run.json", "b/run.json"), "must be a packed run, got 2 folders; pack it again"),
        ((), "must be a packed run, got 0 folders"),
        (("../out/run.json",), "must be a packed run, got .*outside"),
    ],
)
def test_an_archive_of_something_else_is_refused(tmp_path, names, match):
    archive = write_archive(tmp_path / "x.tar", names)
    with pytest.raises(UserError, match=match):
        unpack_run(archive, tmp_path / "into" / "deep")
    assert not list(tmp_path.rglob("run.json"))


def test_a_file_that_is_no_archive_is_refused(folder, tmp_path):
    (tmp_path / "x.tar").write_bytes(b"no archive")
    with pytest.raises(UserError, match="x.tar must be a packed run, got .*; pack it again"):
        unpack_run(tmp_path / "x.tar", tmp_path)
    with pytest.raises(UserError, match="none.tar must be a packed run, got .*No such file"):
        unpack_run(tmp_path / "none.tar", tmp_path)
    archive = pack_run(folder)
    archive.write_bytes(archive.read_bytes()[:1500])
    with pytest.raises(UserError, match="must be a packed run, got .*; pack it again"):
        unpack_run(archive, tmp_path / "cut")
