"""What a request may cost, and how one that costs more is refused."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The settings ``serve.*``.

    Attributes:
        token: token that requests must send; None: no token.
        batch_size: maximum number of images that the model computes at once.
        batch_wait: number of seconds that an image waits for others.
        threads: number of decoding threads.
        max_files: maximum number of files per request.
        max_file_bytes: maximum size of an encoded image.
        max_request_bytes: maximum size of a request's body.
        max_pixels: maximum size of an image, and of all images being decoded at once.
        queue: maximum number of requests in flight; more are refused with 503.
        queue_bytes: maximum total size of the bodies of all requests in flight.
        timeout: number of seconds from the first byte of a request to its answer.
    """

    token: str | None
    batch_size: int
    batch_wait: float
    threads: int
    max_files: int
    max_file_bytes: int
    max_request_bytes: int
    max_pixels: int
    queue: int
    queue_bytes: int
    timeout: float


class Refusal(Exception):
    """A request that gets an error.

    Args:
        status: HTTP status, 4xx or 503.
        code: error code for programs, such as ``"too_many_pixels"``.
        message: error message for people, one line.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers that HTTP prescribes for the status."""
        by_status = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}  # seconds
        return by_status.get(self.status, {})


class Budget:
    """Shares a number of units (pixels) among coroutines, in the order in which they ask.

    Args:
        total: number of units; a request for more gets all of them, alone.
    """

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._turn, self._changed = asyncio.Lock(), asyncio.Condition()

    @asynccontextmanager
    async def of(self, units: int) -> AsyncIterator[None]:
        """Hold units while the block runs, after waiting for them."""
        units = min(units, self._total)
        async with self._turn, self._changed:  # who waits is first: small requests do not overtake a large one
            await self._changed.wait_for(lambda: self._free >= units)
            self._free -= units
        try:
            yield
        finally:
            self._free += units
            async with self._changed:
                self._changed.notify_all()
