"""Read the images of a request, in memory and within its limits: multipart files, or JSON with base64."""

import asyncio
import base64
import binascii
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from fish_lightning.names import printable
from fish_lightning.serving.limits import Limits, Refusal

FIELD = "files"
#: Parts of a form that may stand beside its files; they are ignored.
OTHER_FIELDS = 10


@dataclass(frozen=True)
class Upload:
    """One file.

    Attributes:
        name: name that the client gives it; returned to the client, and used for nothing else.
        content: encoded image.
    """

    name: str
    content: bytes


class _InMemoryParser(MultiPartParser):
    """Starlette's parser, whose files never go to disk: the body is bounded before it gets here."""

    spool_max_size = sys.maxsize

    def __init__(self, request: Request, limits: Limits) -> None:
        parts: Any = body_parts(request, limits)
        super().__init__(request.headers, parts, max_files=sys.maxsize, max_fields=sys.maxsize)
        self._limits, self._parts = limits, 0

    def on_part_begin(self) -> None:
        """Bound the number of parts: each costs more memory than its bytes."""
        self._parts += 1
        if self._parts > self._limits.max_files + OTHER_FIELDS:
            raise _too_many(self._limits)
        super().on_part_begin()


async def read_uploads(request: Request, limits: Limits) -> list[Upload]:
    """Return the files of a request, at least one.

    Raises:
        Refusal: it is malformed, empty or beyond a limit.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        uploads = await _multipart(request, limits)
    elif media_type == "application/json":
        uploads = await asyncio.to_thread(_json_files, await read_body(request, limits))
    else:
        raise Refusal(415, "unsupported_media_type", "send multipart/form-data or application/json")
    if not uploads:
        raise Refusal(400, "no_files", f"the request has no {FIELD}")
    if len(uploads) > limits.max_files:
        raise _too_many(limits)
    for number, upload in enumerate(uploads, 1):
        if len(upload.content) > limits.max_file_bytes:
            message = f"{called(upload.name, number)}: more than {limits.max_file_bytes:,} bytes"
            raise Refusal(413, "file_too_large", message)
    return uploads


def called(name: str, number: int) -> str:
    """Return what a message calls a file: its number in the request, from 1, and its name."""
    return f"file {number} ({printable(name[:100])})" if name else f"file {number}"


async def body_parts(request: Request, limits: Limits) -> AsyncIterator[bytes]:
    """Yield the body of a request as it arrives.

    Raises:
        Refusal: it is larger than ``limits.max_request_bytes``, or the client is gone.
    """
    too_large = Refusal(413, "request_too_large", f"more than {limits.max_request_bytes:,} bytes")
    if int(request.headers.get("content-length", 0)) > limits.max_request_bytes:  # which the server has checked
        raise too_large
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limits.max_request_bytes:
                raise too_large
            yield part
        request.state.complete = True
    except ClientDisconnect:
        raise Refusal(400, "incomplete_request", "the connection was closed before the request was complete") from None


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return the body of a request.

    Raises:
        Refusal: see :func:`body_parts`.
    """
    return b"".join([part async for part in body_parts(request, limits)])


def parse_json(content: bytes) -> dict[str, Any]:
    """Return the JSON object that these bytes are.

    Raises:
        Refusal: they are not a JSON object.
    """
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise Refusal(400, "malformed_request", "the body is not a JSON object")
    return parsed


async def _multipart(request: Request, limits: Limits) -> list[Upload]:
    try:
        form = await _InMemoryParser(request, limits).parse()
    except MultiPartException:
        raise Refusal(400, "malformed_request", "the body is not valid multipart/form-data") from None
    uploads = []
    for value in form.getlist(FIELD):
        if isinstance(value, str):
            raise Refusal(400, "malformed_request", f"{FIELD} must be files, with a filename")
        uploads.append(Upload(value.filename or "", await value.read()))
        await value.close()
    return uploads


def _json_files(body: bytes) -> list[Upload]:
    """Return the files of ``{"files": [{"name": …, "data": base64}]}``."""
    files = parse_json(body).get(FIELD)
    if not isinstance(files, list):
        raise Refusal(400, "malformed_request", f'{FIELD} must be a list of {{"name": …, "data": base64}}')
    uploads = []
    for number, file in enumerate(files, 1):
        name, data = (file.get("name", ""), file.get("data")) if isinstance(file, dict) else ("", None)
        if not isinstance(name, str) or not isinstance(data, str):
            raise Refusal(400, "malformed_request", f"file {number}: name and data must be text")
        try:
            uploads.append(Upload(name, base64.b64decode(data, validate=True)))
        except (binascii.Error, ValueError):
            raise Refusal(400, "malformed_request", f"{called(name, number)}: data is not base64") from None
    return uploads


def _too_many(limits: Limits) -> Refusal:
    return Refusal(413, "too_many_files", f"more than {limits.max_files} files in a request")
