"""A small gated hub on this machine, for the real client of the hub."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from dit8.models.hub import list_repository

REPO, COMMIT, TOKEN = "owner/model", "c" * 40, "hf_secret"
INDEX = json.dumps(
    {
        "_class_name": "Ideogram4Pipeline",
        "vae": ["diffusers", "AutoencoderKLFlux2"],
        "prompt_enhancer_head": [None, None],
    }
).encode()
BIG = bytes(range(256)) * 4096  # 1 MiB, every block of which differs from a shifted one
FILES = {
    ".gitattributes": b"x",
    "LICENSE.md": b"The terms.\nSecond line.\n",
    "README.md": b"# card\n",
    "demo.py": b"print()",
    "model_index.json": INDEX,
    "vae/config.json": b"{}",
    "vae/pickled.bin": b"pickle",
    "vae/weights.safetensors": BIG,
    "other/weights.safetensors": b"not a component",
}


class Handler(BaseHTTPRequestHandler):
    """Answer what the client asks a hub: the listing, the access check, and files in ranges."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:  # noqa: N802 (the server calls it by this name)
        self.do_GET()

    def do_GET(self) -> None:  # noqa: N802
        state, path = self.server.state, unquote(urlsplit(self.path).path)
        if self.headers.get("Authorization") == "Bearer broken":
            self.answer(
                401, headers={"X-Error-Message": "Invalid credentials in Authorization header"}
            )
        elif path == f"/api/models/{REPO}":
            self.answer(200, json.dumps(state.listing()).encode())
        elif path.startswith("/api/") and path != f"/api/models/{REPO}/auth-check":
            self.answer(404, headers={"X-Error-Code": "RepoNotFound"})
        elif state.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(403, headers={"X-Error-Code": "GatedRepo"})
        elif path.endswith("/auth-check"):
            self.answer(200)
        else:
            self.send_file(path.removeprefix(f"/{REPO}/resolve/{COMMIT}/"))

    def answer(self, status: int, body: bytes = b"", headers: dict | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def send_file(self, name: str) -> None:
        state = self.server.state
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(match[1]) if match and not state.ignores_ranges else 0
        state.asked.append((name, int(match[1]) if match else 0))
        body = state.sent.get(name, state.files[name])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if name in state.cuts:
            self.wfile.write(body[start : start + state.cuts[name]])
            self.wfile.flush()
            if state.stalls:
                state.resumed.wait(60)
            else:
                del state.cuts[name]
            self.close_connection = True
            return
        self.wfile.write(body[start:])


class Hub(SimpleNamespace):
    """What the server holds and was asked for."""

    def listing(self) -> dict:
        siblings = []
        for name, body in self.files.items():
            blob = hashlib.sha1(f"blob {len(body)}\0".encode() + body).hexdigest()
            entry = {"rfilename": name, "size": len(body), "blobId": blob}
            if name.endswith(".safetensors"):
                sha256 = hashlib.sha256(body).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(body), "pointerSize": 130}
            siblings.append(entry)
        return {"id": REPO, "sha": COMMIT, "gated": self.gated, "siblings": siblings}


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Run a gated hub whose files can be fetched with TOKEN; the client talks to it."""
    state = Hub(
        repo=REPO,
        commit=COMMIT,
        token=TOKEN,
        handler=Handler,
        big=BIG,
        index=INDEX,
        files=dict(FILES),
        sent={},  # name -> bytes sent instead of those listed
        gated=True,
        asked=[],  # (name, first byte)
        cuts={},  # name -> bytes after which the connection ends, once
        stalls=False,  # instead of ending, send nothing more
        ignores_ranges=False,
        resumed=threading.Event(),
    )
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.state, http.daemon_threads = state, True
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    state.address = f"http://127.0.0.1:{http.server_address[1]}"
    template = state.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", state.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield state
    state.resumed.set()
    http.shutdown()
    http.server_close()


@pytest.fixture
def listing(server):
    return list_repository(REPO, TOKEN)
