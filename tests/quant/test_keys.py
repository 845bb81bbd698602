import hashlib
import os

import pytest

from dit8.quant import files
from dit8.quant.files import content_key, file_sha256, files_sha256


def test_content_key_ignores_order_of_keys_only():
    key = content_key({"a": 1, "b": [1, 2], "c": "é"})
    assert key == content_key({"c": "é", "b": [1, 2], "a": 1})
    assert len(key) == 12 and set(key) <= set("0123456789abcdef")
    assert key != content_key({"a": 1, "b": [2, 1], "c": "é"})
    assert key != content_key({"a": 1.5, "b": [1, 2], "c": "é"})


def test_content_key_refuses_what_json_cannot_hold():
    with pytest.raises(ValueError, match="not JSON compliant"):
        content_key({"a": float("nan")})
    with pytest.raises(ValueError, match="not JSON serializable"):
        content_key({"a": object()})


def test_files_hash_sees_names_and_boundaries(tmp_path):
    def digest(*contents):
        paths = []
        for name, content in contents:
            (tmp_path / name).write_bytes(content)
            paths.append(tmp_path / name)
        return files_sha256(paths, root=tmp_path)

    first = digest(("a", b"12"), ("b", b"3"))
    assert first == digest(("a", b"12"), ("b", b"3"))
    assert first != digest(("a", b"1"), ("b", b"23"))
    assert first != digest(("a", b"12"), ("c", b"3"))


def test_unchanged_files_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "REST_NS", -1)
    path, reads = tmp_path / "a", []
    path.write_bytes(b"12")
    genuine = files._update
    monkeypatch.setattr(files, "_update", lambda *given: (reads.append(1), genuine(*given)))
    first = files_sha256([path], root=tmp_path)
    assert files_sha256([path], root=tmp_path) == first and len(reads) == 1
    assert file_sha256(path) == file_sha256(path) == hashlib.sha256(b"12").hexdigest()
    assert len(reads) == 2
    assert files_sha256([path], root=tmp_path.parent) != first  # another name of the same file


@pytest.mark.parametrize("way", ["in place", "replaced"])
def test_a_file_changed_under_its_old_times_is_read_again(tmp_path, monkeypatch, way):
    monkeypatch.setattr(files, "REST_NS", -1)
    path = tmp_path / "a"
    path.write_bytes(b"12")
    before = path.stat()
    assert file_sha256(path) == hashlib.sha256(b"12").hexdigest()
    if way == "replaced":
        (tmp_path / "b").write_bytes(b"34")
        os.replace(tmp_path / "b", path)
    else:
        while path.stat().st_ctime_ns == before.st_ctime_ns:  # until the clock has moved on
            path.write_bytes(b"34")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file_sha256(path) == hashlib.sha256(b"34").hexdigest()


def test_a_file_just_written_is_not_trusted(tmp_path):
    path = tmp_path / "a"
    for content in (b"12", b"34", b"56", b"78"):  # within one tick, perhaps
        path.write_bytes(content)
        assert file_sha256(path) == hashlib.sha256(content).hexdigest()
