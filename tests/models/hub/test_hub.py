import pytest
from huggingface_hub import constants

from dit8.models.hub import REPOSITORIES, list_repository, read_licence, resolve_repository
from dit8.quant.errors import UserError

REPO, COMMIT, TOKEN = "owner/model", "c" * 40, "hf_secret"  # of the hub in conftest.py
FETCHED = ["LICENSE.md", "README.md", "vae/config.json", "vae/weights.safetensors"]


def test_names_become_repositories():
    assert resolve_repository("fp8") == REPOSITORIES["fp8"]
    assert resolve_repository("owner/name") == "owner/name"
    for name in ("fp16", "a/b/c", "/b", "a/", ""):
        with pytest.raises(UserError, match="model must be one of fp8, nf4, bf16, or a repository"):
            resolve_repository(name)


def test_listing_takes_components_and_licence_and_no_code(server, listing):
    assert [file.path for file in listing.files] == [*FETCHED, "model_index.json"]
    assert listing.licence.path == "LICENSE.md"
    assert listing.commit == COMMIT
    assert listing.total_bytes == sum(len(server.files[file.path]) for file in listing.files)
    assert {len(file.digest) for file in listing.files} == {40, 64}


def test_licence_is_read_from_the_repository(server, listing):
    assert read_licence(listing, TOKEN) == "The terms.\nSecond line.\n"
    del server.files["LICENSE.md"]
    text = read_licence(list_repository(REPO, TOKEN), TOKEN)
    assert text == f"{REPO} holds no licence file; its terms are at https://huggingface.co/{REPO}"


def test_without_a_token_the_gate_is_named(server):
    message = (
        f"{REPO} is gated and no token was found; ask for access at "
        f"https://huggingface.co/{REPO}, then set HF_TOKEN or run `hf auth login`"
    )
    with pytest.raises(UserError, match=message):
        list_repository(REPO, None)


def test_without_access_the_page_is_named(server):
    message = f"this token has no access to {REPO}; ask for access at https://huggingface.co/{REPO}"
    with pytest.raises(UserError, match=message):
        list_repository(REPO, "hf_other")


def test_unknown_repository(server):
    with pytest.raises(UserError, match="no repository owner/nothing that you may see; correct"):
        list_repository("owner/nothing", TOKEN)
    with pytest.raises(UserError, match="correct the name, or set HF_TOKEN if it is private"):
        list_repository("owner/nothing", None)
    with pytest.raises(UserError, match="no repository own..er/x that you may see"):
        list_repository("own..er/x", TOKEN)


def test_a_refused_token(server):
    with pytest.raises(UserError, match=f"the hub answered 401 for {REPO}; make a new token"):
        list_repository(REPO, "broken")


def test_a_hub_in_trouble(server, monkeypatch):
    monkeypatch.setattr(server.handler, "do_GET", lambda self: self.answer(501))
    with pytest.raises(UserError, match=f"the hub answered 501 for {REPO}; try again later"):
        list_repository(REPO, TOKEN)


def test_no_connection(server, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # discard: nobody listens
    with pytest.raises(UserError, match="no connection to the hub .*; go online and run the same"):
        list_repository(REPO, TOKEN)


def test_offline_mode_is_named(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids the hub's client .*; unset it"):
        list_repository(REPO, TOKEN)


def test_another_model_is_refused_before_its_weights_come(server):
    server.files["model_index.json"] = b'{"_class_name": "FluxPipeline"}'
    with pytest.raises(
        UserError, match="of owner/model must name the class Ideogram4Pipeline, got"
    ):
        list_repository(REPO, TOKEN)
    del server.files["model_index.json"]
    with pytest.raises(UserError, match="must be a diffusers repository with model_index.json"):
        list_repository(REPO, TOKEN)


def test_a_path_out_of_the_folder_is_refused(server):
    server.files["vae/../../x.json"] = b"{}"
    with pytest.raises(UserError, match="lists 'vae/../../x.json', expected a path inside"):
        list_repository(REPO, TOKEN)


def test_a_listing_without_hashes_is_refused(server, monkeypatch):
    answer = {"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": "x"}]}
    monkeypatch.setattr(server, "listing", lambda: answer)
    with pytest.raises(UserError, match="must list size and hash of x in owner/model"):
        list_repository(REPO, TOKEN)
    with pytest.raises(UserError, match="is gated"):  # the likelier reason comes first
        list_repository(REPO, None)
