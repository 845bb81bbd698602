import stat

import pytest

from quant.atomic import write_atomically
from quant.errors import UserError


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
