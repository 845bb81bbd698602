import errno
import os
import stat

import pytest

from dit8.quant.errors import UserError
from dit8.quant.files import whole_file, write_atomically, writing


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
