"""What every request must pass, and what every answer carries.

A page on the loopback address is reached by any site that a person has open: a name that such a site controls can be
made to resolve to 127.0.0.1 (DNS rebinding). So the Host of every request must be one of ours, and what a form sends
must come from our own pages.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

LONGEST_TARGET = 8192  # bytes of a path and of a query string
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Safe:
    """Refuse what does not come from this page's own visitors, and send the headers that keep a browser to it."""

    def __init__(self, app: App, host: str) -> None:
        self._app = app
        self._names = {"localhost", socket.gethostname().lower(), host.lower().strip("[]")}

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        refused = self._refusal(scope)
        if refused is None:
            await self._app(scope, receive, guarded)
            return
        status, text = refused
        body = f"{text}\n".encode()
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
        await guarded({"type": "http.response.start", "status": status, "headers": headers})
        await guarded({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def _refusal(self, scope: Message) -> tuple[int, str] | None:
        """Return the status and the reason if a request is refused."""
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value)
        hosts = headers.get(b"host", [])
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return 421, "this page answers to its own address only: use the one that unitscope printed"
        if len(scope.get("raw_path") or scope["path"].encode()) + len(scope["query_string"]) > LONGEST_TARGET:
            return 414, f"the address is longer than {LONGEST_TARGET} bytes"
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "this page answers GET, HEAD and POST"
        origin = headers.get(b"origin", [])
        foreign = any(one not in (b"http://" + hosts[0], b"https://" + hosts[0]) for one in origin)
        cross = headers.get(b"sec-fetch-site", [b"same-origin"]) not in ([b"same-origin"], [b"none"])
        if scope["method"] == "POST" and (foreign or cross):
            return 403, "pictures are taken from this page's own form only"
        return None

    def _is_ours(self, host: bytes) -> bool:
        """Return whether a Host is a number, which no name can be rebound to, or one of this machine's names."""
        try:
            parts = urlsplit(f"//{host.decode('ascii')}")
            name, alone = parts.hostname or "", parts.username is None and parts.netloc.encode() == host
        except ValueError:
            return False
        if not alone:
            return False
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
