"""`unitscope serve`: the page over a store."""

from __future__ import annotations

import socket
import webbrowser
from pathlib import Path

import click

from query.commands.question_command import model_code_option, store_argument
from store.errors import UsageError


@click.command()
@store_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes any free port.")
@click.option("--open", "browser", is_flag=True, help="Open the page in a browser.")
@model_code_option
def serve(store: Path, host: str, port: int, browser: bool, allow_model_code: bool) -> None:
    """Look through STORE in a browser: its networks, layers, units and photographs.

    Drop a picture on any page to see which units fire on it. The page is for this machine only unless --host says
    otherwise; whoever reaches it can read the whole store. Ctrl-C ends it.

    \b
    Examples:
      unitscope serve stores/demo --open
      unitscope serve /data/stores/imagenet --port 8123
    """
    serve_store(store, host, port, browser, allow_model_code)


def serve_store(store: Path, host: str, port: int, browser: bool, allow_model_code: bool) -> None:
    """Serve until the process is interrupted. Raises UsageError if the port is taken or the extra is missing."""
    try:
        import uvicorn

        from query.web.app import Application
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed: pip install 'unitscope[web]'") from None
    application = Application(store, host, allow_model_code)
    listening = _listening(host, port)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}/"
    click.echo(f"The page of {store}: {address}  (Ctrl-C ends it)", err=True)
    if host not in ("127.0.0.1", "localhost", "::1"):
        click.echo("note: others can reach this page and read the whole store", err=True)
    config = uvicorn.Config(
        application.app, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=15,
        h11_max_incomplete_event_size=32 << 10, timeout_graceful_shutdown=3, http="h11", ws="none", lifespan="off",
    )  # fmt: skip
    if browser:
        webbrowser.open(address)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        listening.close()
        application.close()


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises UsageError, which names a way out, if it cannot."""
    try:
        family, kind, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind)
    except OSError as error:
        raise UsageError(f"--host {host}: {error.strerror or error}") from error
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(target)
        opened.listen(2048)  # whoever reads the address may connect at once
    except OSError as error:
        opened.close()
        raise UsageError(f"--port {port} on {host}: {error.strerror}: choose another, or 0 for any") from error
    return opened


COMMANDS: dict[str, click.Command] = {"serve": serve}
