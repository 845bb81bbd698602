import errno
import hashlib
import os
import stat
import threading

import pytest

from dit8.quant import files
from dit8.quant.errors import UserError
from dit8.quant.files import (
    content_key,
    file_sha256,
    files_sha256,
    locked,
    whole_file,
    write_atomically,
    writing,
)


def test_writes_makes_folders_and_is_readable_by_others(tmp_path):
    path = tmp_path / "a" / "b.txt"

    def write(temporary):
        assert temporary.parent == path.parent and not path.exists()
        temporary.touch(mode=0o600)
        temporary.write_text("x")

    write_atomically(path, write)
    assert path.read_text() == "x"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_writers_of_one_number_on_two_machines_do_not_meet(tmp_path, monkeypatch):
    def names():
        with whole_file(tmp_path / "x") as one, whole_file(tmp_path / "x") as other:
            one.write_text("1")
            other.write_text("2")
        return {one.name, other.name}

    monkeypatch.setattr("platform.node", lambda: "node-1")
    first = names()
    assert len(first) == 2 and all(f"-{os.getpid()}-" in name for name in first)
    monkeypatch.setattr("platform.node", lambda: "node-2")
    assert not {name.split("-")[0] for name in first} & {name.split("-")[0] for name in names()}


def test_an_interrupt_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "b.txt"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*choose a folder that you may write to"):
        write_atomically(tmp_path / "file" / "x", lambda temporary: temporary.write_text(""))


def test_a_full_disk_says_what_is_free(tmp_path):
    def write(temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=r"x: No space left on device \(\d+ are free\); make room"):
        write_atomically(tmp_path / "x", write)
    assert list(tmp_path.iterdir()) == []
    # a full disk refuses folders too: then the nearest one that exists tells what is free
    with pytest.raises(UserError, match=r"\(7 bytes are needed, \d+ are free\); make room"):
        with writing(tmp_path / "not" / "made" / "x", 7):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def test_nothing_begins_without_the_room_for_it(tmp_path):
    with pytest.raises(UserError, match=rf"\({1 << 60} bytes are needed, \d+ are free\)"):
        with whole_file(tmp_path / "x", 1 << 60):
            pytest.fail("the block must not begin")


def test_errors_of_the_block_are_not_called_errors_of_writing(tmp_path):
    with pytest.raises(OSError, match="a source that cannot be read"):
        with whole_file(tmp_path / "x") as temporary:
            temporary.write_text("half")
            raise OSError("a source that cannot be read")
    assert list(tmp_path.iterdir()) == []


def test_who_waits_for_a_lock_is_told(tmp_path):
    told = []
    with locked(tmp_path / "run", lambda: told.append("nobody has it")):
        assert told == []
        start, have = threading.Event(), []

        def second():
            with locked(tmp_path / "run", start.set):
                have.append(True)

        thread = threading.Thread(target=second)
        thread.start()
        assert start.wait(10) and have == []
    thread.join(10)
    assert have == [True]


def test_a_shared_lock_keeps_out_only_who_wants_it_alone(tmp_path):
    path, waits = tmp_path / "run", []
    with (
        locked(path, shared=True),
        locked(path, lambda: waits.append(1), shared=True),
    ):
        start, have = threading.Event(), []

        def alone():
            with locked(path, start.set):
                have.append(True)

        thread = threading.Thread(target=alone)
        thread.start()
        assert start.wait(10) and have == [] and waits == []
    thread.join(10)
    assert have == [True]


def test_what_the_holder_of_a_lock_raises_is_its_own(tmp_path):
    with pytest.raises(OSError, match="disk on fire"), locked(tmp_path / "run"):
        raise OSError("disk on fire")


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
