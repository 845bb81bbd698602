"""Ask an OpenAI-compatible server one thing, and survive its moods.

One POST to <url>/chat/completions by the standard library. What may pass by itself (429, 408, 5xx,
a lost connection, a timeout, an answer that is no chat completion) is tried again after 1, 2, 4 ...
seconds, or after what Retry-After asks for; what will not pass (the rest of 4xx, a redirect) ends
at once. The key goes into one header and nowhere else: redirects are not followed, since the
header would travel along, and a server that echoes the key finds it struck out of our messages.
"""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from dit8.quant.errors import UserError

PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # statuses that may pass by themselves
MAX_ANSWER_BYTES = 4 << 20  # a caption has 2-4 kB
MAX_WAIT_SECONDS = 60.0  # whatever Retry-After says
URL, MODEL, KEY = "DIT8_EXPAND_URL", "DIT8_EXPAND_MODEL", "DIT8_EXPAND_KEY"
REMEDIES = {
    400: "the server must take response_format json_schema, and messages of this length",
    401: f"check {KEY}",
    403: f"check {KEY}",
    404: f"check {URL} and {MODEL}",
    422: "the server must take response_format json_schema",
}


@dataclass(frozen=True)
class Endpoint:
    """A server, a model on it, and how patient to be.

    Args:
        url: up to and without /chat/completions, http or https.
        model: as the server names it.
        key: sent as a bearer token; "" sends none.
        timeout_s: for one answer, first byte to last.
        attempts: before giving up.
        sleep: waits between attempts; tests count instead.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    timeout_s: float = 120.0
    attempts: int = 5
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(
                f"{URL} must be an address such as http://localhost:8000/v1, got {self.url!r}"
            )
        if parts.username or parts.password or parts.query:
            raise UserError(
                f"{URL} must have no user name, password or query; put the key into {KEY}"
            )
        if not self.key.isprintable() or not self.key.isascii():
            raise UserError(f"{KEY} must be printable ASCII, got another character; copy it again")


def endpoint_from(environment: Mapping[str, str]) -> Endpoint | None:
    """Read an endpoint from the environment; None where address or model is missing.

    Raises:
        UserError: an address or a key that cannot be one.
    """
    url, model = environment.get(URL, "").strip(), environment.get(MODEL, "").strip()
    if not url or not model:
        return None
    url = url.rstrip("/").removesuffix("/chat/completions")
    return Endpoint(url, model, environment.get(KEY, "").strip())


def ask(endpoint: Endpoint, messages: list[dict[str, str]], response_format: dict) -> str:
    """Return the content of the model's answer.

    Args:
        messages: role and content of each, oldest first.
        response_format: of the chat completions interface.

    Raises:
        UserError: no attempt was answered, or the server or the model refuses.
    """
    body = {
        "model": endpoint.model,
        "messages": messages,
        "response_format": response_format,
        "stream": False,
    }
    for attempt in range(1, endpoint.attempts + 1):
        wait = min(2.0 ** (attempt - 1), MAX_WAIT_SECONDS)
        try:
            return _content(endpoint, _post(endpoint, body))
        except urllib.error.HTTPError as error:
            reason = _refusal(endpoint, error)
            if error.code not in PASSING:
                remedy = REMEDIES.get(error.code, f"check {URL}")
                raise UserError(f"{_name(endpoint)} answered {reason}; {remedy}") from error
            wait = _retry_after(error.headers.get("Retry-After"), wait)
        except UserError:  # a ValueError too, but no other attempt would end better
            raise
        except TimeoutError:
            reason = f"nothing within {endpoint.timeout_s:g} s"
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = _masked(endpoint, f"{type(error).__name__}: {error}")
        if attempt < endpoint.attempts:
            endpoint.sleep(wait)
    raise UserError(
        f"{_name(endpoint)} gave no usable answer in {endpoint.attempts} attempts, the last one: "
        f"{reason}; is the server running, and is {URL} right?"
    )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None  # then the redirect is raised as an HTTPError


def _post(endpoint: Endpoint, body: dict) -> bytes:
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    request = urllib.request.Request(
        f"{endpoint.url}/chat/completions",
        data=json.dumps(body, ensure_ascii=False).encode(),
        headers=headers,
        method="POST",
    )
    deadline = time.monotonic() + endpoint.timeout_s
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(request, timeout=endpoint.timeout_s) as response:
            answer = bytearray()
            while chunk := response.read1(1 << 16):
                answer += chunk
                if len(answer) > MAX_ANSWER_BYTES:
                    raise ValueError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
                if time.monotonic() > deadline:  # the socket's own limit is per read
                    raise TimeoutError
            if response.length:  # read1 ends quietly where the connection does
                raise http.client.IncompleteRead(bytes(answer), response.length)
            return bytes(answer)
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise TimeoutError from error
        raise


def _content(endpoint: Endpoint, answer: bytes) -> str:
    """Take the content out of a chat completion; ValueError where there is none."""
    try:
        message = json.loads(answer)["choices"][0]["message"]
        content, refusal = message.get("content"), message.get("refusal")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        shown = answer[:80].decode("utf-8", "replace")
        raise ValueError(f"no chat completion but {shown!r}") from error
    if isinstance(refusal, str) and refusal:
        raise UserError(
            f"{_name(endpoint)} refuses: {_masked(endpoint, refusal)}; rephrase the idea"
        )
    if not isinstance(content, str):
        raise ValueError(f"a message without content but {content!r}")
    return content


def _refusal(endpoint: Endpoint, error: urllib.error.HTTPError) -> str:
    with error:
        try:
            body = error.read(2000).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            body = ""
    target = error.headers.get("Location")
    detail = f"a redirect to {target}" if target else body
    return _masked(endpoint, f"{error.code} {error.reason} ({detail})" if detail else str(error))


def _retry_after(header: str | None, otherwise: float) -> float:
    """Read seconds or a date; what cannot be read counts as absent."""
    if header is None:
        return otherwise
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return otherwise
    return min(max(seconds, 0.0), MAX_WAIT_SECONDS)


def _name(endpoint: Endpoint) -> str:
    return f"endpoint {endpoint.url} (model {endpoint.model})"


def _masked(endpoint: Endpoint, text: str, limit: int = 200) -> str:
    text = " ".join(text.split())
    if endpoint.key:
        text = text.replace(endpoint.key, "<key>")
    return text if len(text) <= limit else f"{text[:limit]}..."
