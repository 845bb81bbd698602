import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from dit8.models import download, hub
from dit8.models.download import check_folder, fetch
from dit8.models.hub import RemoteFile
from dit8.quant.errors import UserError

REPO, COMMIT, TOKEN = "owner/model", "c" * 40, "hf_secret"  # of the hub in conftest.py
FETCHED = ["LICENSE.md", "README.md", "vae/config.json", "vae/weights.safetensors"]


def stored(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_access_lost_on_the_way_is_said_too(server, listing, tmp_path):
    with pytest.raises(UserError, match="this token has no access"):
        fetch(listing, tmp_path / "model", "hf_other")


def test_fetch_brings_every_file_and_leaves_nothing_else(server, listing, tmp_path):
    folder = tmp_path / "new" / "model"
    assert check_folder(listing, folder) == listing.total_bytes
    server.asked.clear()
    assert fetch(listing, folder, TOKEN) == listing.total_bytes
    record = {"repository": REPO, "commit": COMMIT}
    held = stored(folder)
    assert json.loads(held.pop("download.json")) == record
    assert held == {name: server.files[name] for name in (*FETCHED, "model_index.json")}
    assert server.asked[-1] == ("model_index.json", 0)  # last: until then it is no model
    # the same call once more checks the hashes and fetches nothing
    server.asked.clear()
    assert check_folder(listing, folder) == 0
    assert fetch(listing, folder, TOKEN) == 0
    assert server.asked == []


def test_fetch_goes_on_where_it_was_stopped(server, listing, tmp_path, monkeypatch):
    folder, get_file = tmp_path / "model", hub.get_file

    class Stopping(io.RawIOBase):
        """Press Ctrl-C after 300 kB."""

        def __init__(self, stream):
            self.stream, self.left = stream, 300_000

        def write(self, data):
            piece = data[: self.left]
            self.left -= len(piece)
            self.stream.write(piece)
            if not self.left:
                raise KeyboardInterrupt
            return len(piece)

        def tell(self):
            return self.stream.tell()

    def stop(repo, commit, file, token, stream, start):
        get_file(repo, commit, file, token, Stopping(stream), start)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download, "get_file", stop)
        fetch(listing, folder, TOKEN)
    assert not (folder / "vae" / "weights.safetensors").exists()
    assert not (folder / "model_index.json").exists()
    server.asked.clear()
    rest = len(server.big) - 300_000 + len(server.index)
    assert check_folder(listing, folder) == rest
    assert fetch(listing, folder, TOKEN) == rest
    assert server.asked == [("vae/weights.safetensors", 300_000), ("model_index.json", 0)]
    assert (folder / "vae" / "weights.safetensors").read_bytes() == server.big
    assert not (folder / ".download").exists()


def test_a_short_interruption_is_survived(server, listing, tmp_path, monkeypatch):
    # a chunk that has not come whole is lost
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    server.cuts["vae/weights.safetensors"] = 500_000
    server.asked.clear()
    fetch(listing, tmp_path / "model", TOKEN)
    starts = [start for name, start in server.asked if name == "vae/weights.safetensors"]
    assert starts == [0, 500_000]
    assert (tmp_path / "model" / "vae" / "weights.safetensors").read_bytes() == server.big


def partial_file(listing, folder: Path, content: bytes) -> Path:
    """Leave what an interrupted run leaves of the weights."""
    (file,) = (file for file in listing.files if file.path == "vae/weights.safetensors")
    part = folder / ".download" / f"{file.digest}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content)
    (folder / "download.json").write_text(json.dumps({"repository": REPO}))
    return part


def test_a_server_that_ignores_ranges_is_survived(server, listing, tmp_path):
    partial_file(listing, tmp_path, server.big[:1000])
    server.ignores_ranges = True
    fetch(listing, tmp_path, TOKEN)
    assert ("vae/weights.safetensors", 1000) in server.asked
    assert (tmp_path / "vae" / "weights.safetensors").read_bytes() == server.big


@pytest.mark.parametrize("extra", [b"", b"more"])
def test_a_part_of_full_or_greater_length(server, listing, tmp_path, extra):
    partial_file(listing, tmp_path, server.big + extra)
    assert check_folder(listing, tmp_path) == listing.total_bytes - len(server.big)
    fetch(listing, tmp_path, TOKEN)
    assert (tmp_path / "vae" / "weights.safetensors").read_bytes() == server.big


@pytest.mark.parametrize("name", ["vae/weights.safetensors", "vae/config.json"])
def test_other_bytes_than_listed_are_refused_and_deleted(server, listing, tmp_path, name):
    good = server.files[name]
    server.sent[name] = bytes([good[0] ^ 1]) + good[1:]
    with pytest.raises(UserError, match=f"{name} must have hash [0-9a-f]+, what came has another"):
        fetch(listing, tmp_path / "model", TOKEN)
    assert not (tmp_path / "model" / name).exists()
    assert not list((tmp_path / "model" / ".download").iterdir())
    server.sent.clear()
    fetch(listing, tmp_path / "model", TOKEN)
    assert (tmp_path / "model" / name).read_bytes() == good


def test_more_bytes_than_listed_are_refused(server, listing, tmp_path):
    server.sent["vae/config.json"] = b"{} and more"
    with pytest.raises(UserError, match="vae/config.json must have 2 bytes, other bytes came"):
        fetch(listing, tmp_path / "model", TOKEN)
    assert not (tmp_path / "model" / "vae" / "config.json").exists()


def test_a_damaged_file_is_fetched_again_and_is_no_model_meanwhile(server, listing, tmp_path):
    fetch(listing, tmp_path, TOKEN)
    path = tmp_path / "vae" / "weights.safetensors"
    path.write_bytes(server.big[:-1] + b"!")
    with pytest.raises(UserError, match="no access"):
        fetch(listing, tmp_path, "hf_other")
    assert not (tmp_path / "model_index.json").exists()
    assert fetch(listing, tmp_path, TOKEN) == len(server.big) + len(server.index)
    assert path.read_bytes() == server.big


def test_a_folder_of_something_else_is_left_alone(server, listing, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(
        UserError, match="empty or hold owner/model, got something that this script"
    ):
        check_folder(listing, tmp_path)
    (tmp_path / "download.json").write_text('{"repository": "owner/other"}')
    with pytest.raises(UserError, match="empty or hold owner/model, got owner/other; choose"):
        check_folder(listing, tmp_path)
    with pytest.raises(UserError, match="empty or hold owner/model"):
        check_folder(listing, tmp_path / "mine.txt")
    assert stored(tmp_path).keys() == {"mine.txt", "download.json"}


def test_a_shard_of_an_older_commit_is_named(server, listing, tmp_path):
    fetch(listing, tmp_path, TOKEN)
    (tmp_path / "vae" / "old.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"vae/old\.safetensors must be a file of owner/model"):
        check_folder(listing, tmp_path)


def test_a_small_disk_is_refused_beforehand(server, listing, tmp_path, monkeypatch):
    monkeypatch.setattr(
        download.shutil, "disk_usage", lambda path: SimpleNamespace(free=listing.total_bytes - 1)
    )
    with pytest.raises(UserError, match=r"must have 0.00 GB free for owner/model, got 0.00 GB"):
        check_folder(listing, tmp_path / "not" / "there" / "yet")
    partial_file(listing, tmp_path, server.big[:1])  # one byte less to come, and it fits
    assert check_folder(listing, tmp_path) == listing.total_bytes - 1


def test_a_full_disk_keeps_what_has_come(server, listing, tmp_path, monkeypatch):
    def fail(repo, commit, file, token, stream, start):
        stream.write(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "get_file", fail)
    with pytest.raises(UserError, match=r"cannot write .*LICENSE.md \(No space left on device\)"):
        fetch(listing, tmp_path / "model", TOKEN)
    (part,) = (tmp_path / "model" / ".download").iterdir()
    assert part.read_bytes() == b"some"


def test_two_downloads_into_one_folder_are_refused(server, listing, tmp_path):
    part = partial_file(listing, tmp_path, b"")
    with part.open("ab") as held:
        download._lock(held, tmp_path)
        with pytest.raises(UserError, match="another process is fetching into .*; wait for it"):
            fetch(listing, tmp_path, TOKEN)


def test_the_digest_is_gits_for_small_files(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"hello\n")
    # git hash-object of a file with this content
    known = "ce013625030ba8dba906f756967f9e9ca394464a"
    assert download._digest(path, RemoteFile("f", 6, known)) == known
