"""What the server of the page refuses, and what it says to browsers; without a browser."""

import asyncio
import socket

import pytest

pytest.importorskip("gradio", reason="the page needs Gradio: pip install -e '.[app]'")

from evaluation_tier.app.serving import MAX_BODY_BYTES, Guard, check_port


def ask(
    path: str, method: str = "GET", length: int | None = None, kind: str = "http"
) -> tuple[int, dict[bytes, bytes]]:
    """Status and headers of the answer to one request; 299 where the guard lets it through."""
    sent = []

    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 299, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(told):
        sent.append(told)

    headers = [] if length is None else [(b"content-length", str(length).encode())]
    asyncio.run(Guard(page)({"type": kind, "path": path, "method": method, "headers": headers}, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"])


@pytest.mark.parametrize("path", ["/", "/config", "/assets/index.js", "/theme.css", "/gradio_api/queue/data"])
def test_the_page_passes_and_may_load_nothing_from_elsewhere(path):
    status, headers = ask(path)
    assert status == 299
    policy = dict(part.strip().split(" ", 1) for part in headers[b"content-security-policy"].decode().split(";"))
    assert policy["default-src"] == "'self'" and "http" not in str(policy)
    assert headers[b"referrer-policy"] == b"no-referrer"


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/gradio_api/upload",
            "/gradio_api/file=/etc/passwd",
            "/gradio_api/proxy=https://example.org",
            "/monitoring",
        ),
        *("/gradio_api/run/ask", "/gradio_api/call/ask", "/gradio_api/runs", "/gradio_api/vibe-edit", "/docs"),
        *("/gradio_api/info", "/gradio_api/openapi.json", "/assets/../../secret", "/login", "/configuration"),
    ],
)
def test_other_ways_in_are_closed(path):
    assert ask(path)[0] == 404 and ask(path, "POST", 10)[0] == 404


def test_bodies_are_bounded():
    assert ask("/gradio_api/queue/join", "POST", MAX_BODY_BYTES)[0] == 299
    assert ask("/gradio_api/queue/join", "POST", MAX_BODY_BYTES + 1)[0] == 413
    assert ask("/gradio_api/queue/join", "POST")[0] == 411


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ValueError, match=f"^The page cannot listen on 127.0.0.1, port {port} .*choose another --port"
        ):
            check_port("127.0.0.1", port)
