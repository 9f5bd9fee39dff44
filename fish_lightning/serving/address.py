"""Where the server listens, and how it ends."""

import errno
import ipaddress
import socket

import uvicorn
from fastapi import FastAPI

from fish_lightning.errors import UserError

BACKLOG = 2048  # connections that wait to be accepted


def require_token(host: str, token: str | None) -> None:
    """Refuse to serve other machines without a token.

    Raises:
        UserError: the host is not this machine's own address, and there is no token.
    """
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        is_loopback = False
    if token is None and not is_loopback:
        raise UserError(
            f"host={host}: other machines could use this server, so it needs a token\n"
            "set one (serve.token=TEXT), which clients send as Authorization: Bearer TEXT"
        )


def listener(host: str, port: int) -> socket.socket:
    """Return a socket that listens, so that a port that is taken is known before the model is loaded.

    Raises:
        UserError: the address is taken, not this machine's, or not allowed.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        why = {
            errno.EADDRINUSE: f"port={port}: already in use; choose another, or port=0 for any free one",
            errno.EACCES: f"port={port}: permission denied; choose one above 1023",
        }
        other = f"host={host}: cannot listen on it ({error.strerror or error})"
        raise UserError(why.get(error.errno or 0, other)) from None


def url(listening: socket.socket) -> str:
    """Return the address of a socket as it is typed into a browser."""
    host, port, *_ = listening.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server_of(app: FastAPI, timeout: float) -> uvicorn.Server:
    """Return the server of an app.

    Args:
        app: the app.
        timeout: number of seconds that a request may take, and that shutdown waits for requests in flight.
    """
    config = uvicorn.Config(
        app,
        log_config=None,  # what it has to say goes where everything does, and that is our own bugs:
        log_level="warning",
        access_log=False,  # nothing of a request is logged; /metrics counts them
        server_header=False,
        timeout_graceful_shutdown=int(timeout) + 1,
    )
    return uvicorn.Server(config)
