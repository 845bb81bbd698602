import hashlib
import os

import pytest

from dit8.eval import weight_files
from dit8.eval.weight_files import HubFiles, find_in_cache, verified_sha256
from dit8.quant.errors import UserError

WANTED = HubFiles("owner/name", (("model.safetensors", "model.bin"), ("config.json",)), "1 MB")


def test_the_command_fetches_what_there_is():
    both = "--include model.safetensors --include model.bin --include config.json"
    assert WANTED.command == f"hf download owner/name {both}"
    one = HubFiles("owner/name", (("a.pt",), ("b.json",)), "1 MB")
    assert one.command == "hf download owner/name a.pt b.json"


def test_every_file_must_be_cached(hub_cache, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"weights")
    assert find_in_cache(WANTED) is None
    binary = hub_cache("owner/name", "model.bin", source)
    assert find_in_cache(WANTED) is None
    config = hub_cache("owner/name", "config.json", source)
    assert find_in_cache(WANTED) == (binary, config)
    better = hub_cache("owner/name", "model.safetensors", source)
    assert find_in_cache(WANTED) == (better, config)


def test_a_file_that_the_hub_does_not_have_is_passed_over(hub_cache, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"weights")
    paths = [hub_cache("owner/name", name, source) for name in ("model.bin", "config.json")]
    absent = paths[0].parents[2] / ".no_exist" / paths[0].parent.name
    absent.mkdir(parents=True)
    (absent / "model.safetensors").touch()
    assert find_in_cache(WANTED) == tuple(paths)


def test_a_cached_file_is_compared_with_the_name_it_is_stored_under(hub_cache, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"weights")
    link = hub_cache("owner/name", "model.bin", source)
    assert verified_sha256(link) == hashlib.sha256(b"weights").hexdigest()
    link.resolve().write_bytes(b"weight")  # the download was cut
    with pytest.raises(
        UserError, match=r"model.bin has the sha256 \w{64}, expected \w{64}; delete"
    ):
        verified_sha256(link)


def test_an_expected_beginning_is_enough_and_another_is_refused(tmp_path):
    path = tmp_path / "w.pt"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert verified_sha256(path) == digest
    assert verified_sha256(path, digest[:8].upper()) == digest
    with pytest.raises(UserError, match=f"w.pt has the sha256 {digest}, expected 00ff; delete"):
        verified_sha256(path, "00ff")


def test_a_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    path = tmp_path / "w.pt"
    path.write_bytes(b"one")
    first = verified_sha256(path)
    with monkeypatch.context() as patch:
        patch.setattr(weight_files, "file_sha256", lambda _: pytest.fail("hashed again"))
        assert verified_sha256(path) == first
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert verified_sha256(path) == hashlib.sha256(b"two").hexdigest()


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot read .*none.pt .No such file"):
        verified_sha256(tmp_path / "none.pt")
