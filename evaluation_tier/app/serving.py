"""Serves the page: what a browser may ask for, how much it may send, and that nothing comes from elsewhere."""

import logging
import socket
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from evaluation_tier.app.questions import MAX_UPLOAD_BYTES

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# What Gradio's own page needs. Not its uploads, its files, its proxy, or its other ways to run a function.
NEEDED = ("/assets/", "/static/", "/gradio_api/queue/", "/gradio_api/heartbeat/")
NEEDED_EXACTLY = (
    *("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json"),
    *("/gradio_api/startup-events", "/gradio_api/app_id", "/gradio_api/theme.css"),
)
MAX_BODY_BYTES = MAX_UPLOAD_BYTES * 4 // 3 + 2**20  # base64, and the rest of the question
# Gradio's page has scripts of its own in the HTML, and compiles templates
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; base-uri 'self'; form-action 'self'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class Guard:
    """Lets through what the page needs, refuses bodies that are too large, and forbids everything from elsewhere."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        refusal = refuse(scope)
        await (refusal or self.app)(scope, receive, send_with_headers)


def refuse(scope: dict[str, Any]) -> PlainTextResponse | None:
    """The answer to a request that the page does not make."""
    path = scope["path"]
    if scope["type"] != "http" or ".." in path or not (path in NEEDED_EXACTLY or path.startswith(NEEDED)):
        return PlainTextResponse("Not found", 404)
    if scope["method"] not in ("GET", "HEAD"):
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():  # the server reads as many bytes as a request says, and not more
            return PlainTextResponse("A length is required", 411)
        if int(length) > MAX_BODY_BYTES:
            return PlainTextResponse("The file is too large", 413)
    return None


def serve(page: gr.Blocks, host: str, port: int) -> None:
    """
    Serve the page until Ctrl-C.

    Raises:
        ValueError: the port cannot be used.
    """
    check_port(host, port)
    if host not in LOOPBACK:
        logger.warning(
            "The page listens on %s, so other machines can reach it. It asks for no password: keep it inside a "
            "network whose users may see the models.",
            host,
        )
    style, script = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        run_history=False,  # it would keep the radiographs in the browser's storage
        quiet=True,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        footer_links=[],
        max_file_size=1,
        app_kwargs={"middleware": [Middleware(Guard)]},
        theme=theme,
        head=f"<style>{style}</style><script>{script}</script>",
        prevent_thread_lock=True,
    )
    logger.warning("Open http://%s:%d in a browser. Ctrl-C ends the page.", f"[{host}]" if ":" in host else host, port)
    page.block_thread()


def check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"The page cannot listen on {host}, port {port} ({error.strerror}): choose another --port."
            ) from error
