"""eval/chat_endpoint.py against a server of this process that misbehaves in every known way."""

import json
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dit8.eval.chat_endpoint import MAX_ANSWER_BYTES, Endpoint, ask, endpoint_from
from dit8.quant.errors import UserError

KEY = "sk-very-secret"
MESSAGES = [{"role": "user", "content": "a fox é"}]
FORMAT = {"type": "json_schema"}


def completion(content, **more) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content} | more}]}).encode()


class Server(ThreadingHTTPServer):
    """Answers with its script, one entry a request; the last one again when it is used up.

    An entry is (status, headers, body), or a function that writes to the connection itself.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.requests = [], []
        self.released = threading.Event()  # ends answers that hang

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, dict(self.headers), json.loads(body)))
        script = self.server.script
        entry = script.pop(0) if len(script) > 1 else script[0]
        if callable(entry):
            entry(self)
            return
        status, headers, answer = entry
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")  # a proxy of the environment is not asked
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.released.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def endpoint(server, waits) -> Endpoint:
    return Endpoint(server.url, "m", KEY, timeout_s=5.0, attempts=4, sleep=waits.append)


OK = (200, {}, completion("fine"))


def test_one_request_has_model_messages_format_and_key(server, endpoint, waits):
    server.script = [OK]
    assert ask(endpoint, MESSAGES, FORMAT) == "fine"
    ((path, headers, body),) = server.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert headers["Content-Type"] == "application/json"
    assert body == {
        "model": "m",
        "messages": MESSAGES,
        "response_format": FORMAT,
        "stream": False,
    }
    assert waits == []


def test_without_a_key_none_is_sent(server):
    server.script = [OK]
    ask(Endpoint(server.url, "m"), MESSAGES, FORMAT)
    assert "Authorization" not in server.requests[0][1]


def hang(handler):
    handler.server.released.wait(5)


def trickle(handler):
    handler.send_response(200)
    handler.end_headers()
    while not handler.server.released.wait(0.05):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def drop(handler):
    handler.close_connection = True


def cut_short(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "9999")
    handler.end_headers()
    handler.wfile.write(completion("fine"))


PASSING = {
    "429": (429, {}, b"slow down"),
    "500": (500, {}, b"oops"),
    "503": (503, {}, b""),
    "html": (200, {}, b"<html>maintenance</html>"),
    "not utf-8": (200, {}, b"\xff\xfe\x00"),
    "no choices": (200, {}, b'{"choices":[]}'),
    "list": (200, {}, b"[]"),
    "deep": (200, {}, b"[" * 100_000),
    "no content": (200, {}, completion(None)),
    "content parts": (200, {}, completion([{"text": "x"}])),
    "dropped": drop,
    "cut short": cut_short,
    "too large": (200, {}, b" " * (MAX_ANSWER_BYTES + 1)),
}


@pytest.mark.parametrize("case", PASSING)
def test_what_may_pass_is_tried_again_with_growing_waits(server, endpoint, waits, case):
    server.script = [PASSING[case], PASSING[case], OK]
    assert ask(endpoint, MESSAGES, FORMAT) == "fine"
    assert waits == [1.0, 2.0]
    assert len(server.requests) == 3


@pytest.mark.parametrize("silence", [hang, trickle], ids=["hanging", "trickling"])
def test_an_answer_that_does_not_end_in_time_is_given_up(server, waits, silence):
    quick = Endpoint(server.url, "m", timeout_s=0.2, attempts=2, sleep=waits.append)
    server.script = [silence]
    with pytest.raises(UserError, match=r"in 2 attempts, the last one: nothing within 0.2 s; is"):
        ask(quick, MESSAGES, FORMAT)
    assert waits == [1.0]


@pytest.mark.parametrize(
    ("case", "match"),
    [
        ("429", r"no usable answer in 4 attempts, the last one: 429 Too Many Requests \(slow down"),
        (
            "html",
            r"last one: ValueError: no chat completion but '<html>maintenance</html>'; is the",
        ),
        ("no content", r"a message without content but None"),
        ("too large", r"an answer of more than 4194304 bytes"),
        ("cut short", r"IncompleteRead"),
    ],
)
def test_the_last_reason_is_named_when_attempts_run_out(server, endpoint, waits, case, match):
    server.script = [PASSING[case]]
    with pytest.raises(UserError, match=rf"endpoint {server.url} \(model m\) gave .*{match}"):
        ask(endpoint, MESSAGES, FORMAT)
    assert waits == [1.0, 2.0, 4.0] and len(server.requests) == 4


def in_seconds(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("7", 7, 7),
        ("0", 0, 0),
        ("86400", 60, 60),
        ("-3", 0, 0),
        (lambda: in_seconds(30), 20, 30),
        (lambda: in_seconds(-30), 0, 0),
        ("soon", 1, 1),
        ("Sat, 01 Jan 2000 00:00:00 -0000", 1, 1),  # a date without a zone
    ],
)
def test_retry_after_is_followed_within_reason(server, endpoint, waits, header, low, high):
    value = header() if callable(header) else header
    server.script = [(429, {"Retry-After": value}, b""), OK]
    assert ask(endpoint, MESSAGES, FORMAT) == "fine"
    assert low <= waits[0] <= high


@pytest.mark.parametrize(
    ("status", "match"),
    [
        (400, r"answered 400 Bad Request \(bad\); the server must take response_format json_sch"),
        (401, r"answered 401 Unauthorized \(bad\); check DIT8_EXPAND_KEY"),
        (403, r"403 Forbidden \(bad\); check DIT8_EXPAND_KEY"),
        (404, r"404 Not Found \(bad\); check DIT8_EXPAND_URL and DIT8_EXPAND_MODEL"),
        (422, r"422 Unprocessable .*response_format json_schema"),
        (418, r"418 I'm a Teapot \(bad\); check DIT8_EXPAND_URL"),
    ],
)
def test_what_will_not_pass_ends_at_once(server, endpoint, waits, status, match):
    server.script = [(status, {}, b"bad")]
    with pytest.raises(UserError, match=match):
        ask(endpoint, MESSAGES, FORMAT)
    assert len(server.requests) == 1 and waits == []


def test_a_redirect_is_not_followed_with_the_key(server, endpoint):
    server.script = [(302, {"Location": f"{server.url}/elsewhere"}, b""), OK]
    with pytest.raises(UserError, match=rf"302 Found \(a redirect to {server.url}/elsewhere\); ch"):
        ask(endpoint, MESSAGES, FORMAT)
    assert len(server.requests) == 1


def test_a_refusal_of_the_model_is_said_once(server, endpoint):
    server.script = [(200, {}, completion(None, refusal="I will not draw this"))]
    with pytest.raises(UserError, match="refuses: I will not draw this; rephrase the idea"):
        ask(endpoint, MESSAGES, FORMAT)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 500])
def test_the_key_is_in_no_message_and_no_repr(server, endpoint, status):
    server.script = [(status, {}, f"key {KEY} is bad".encode())]
    with pytest.raises(UserError, match="key <key> is bad") as caught:
        ask(endpoint, MESSAGES, FORMAT)
    assert KEY not in str(caught.value) and KEY not in repr(endpoint)


def test_a_server_that_is_not_there_is_named(waits, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    nowhere = Endpoint("http://127.0.0.1:9", "m", attempts=2, sleep=waits.append)
    with pytest.raises(UserError, match=r"endpoint http://127.0.0.1:9 .*refused.*is the server r"):
        ask(nowhere, MESSAGES, FORMAT)


def test_the_environment_names_an_endpoint():
    full = {
        "DIT8_EXPAND_URL": "http://h:1/v1/chat/completions/",
        "DIT8_EXPAND_MODEL": " m ",
        "DIT8_EXPAND_KEY": f"{KEY}\n",
    }
    found = endpoint_from({**full, "DIT8_EXPAND_URL": "http://h:1/v1/"})
    assert (found.url, found.model, found.key) == ("http://h:1/v1", "m", KEY)
    assert endpoint_from(full).url == "http://h:1/v1"
    for missing in ("DIT8_EXPAND_URL", "DIT8_EXPAND_MODEL"):
        assert endpoint_from(full | {missing: " "}) is None
    assert endpoint_from({k: v for k, v in full.items() if k != "DIT8_EXPAND_KEY"}).key == ""


@pytest.mark.parametrize(
    ("url", "key", "match"),
    [
        ("localhost:8000", "", r"DIT8_EXPAND_URL must be an address such as http://.*'localhost:"),
        ("file:///etc/passwd", "", r"must be an address such as http://"),
        ("http://", "", r"must be an address such as http://"),
        ("http://me:pw@h/v1", "", r"must have no user name, password or query; put the key"),
        ("http://h/v1?key=1", "", r"must have no user name, password or query"),
        ("http://h/v1", "a\nb", r"DIT8_EXPAND_KEY must be printable ASCII"),
        ("http://h/v1", "schlüssel", r"DIT8_EXPAND_KEY must be printable ASCII"),
    ],
)
def test_an_address_or_key_that_cannot_be_one_is_named(url, key, match):
    with pytest.raises(UserError, match=match) as caught:
        Endpoint(url, "m", key)
    assert "pw" not in str(caught.value).replace("password", "")
