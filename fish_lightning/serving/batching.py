"""Dynamic batches: images of concurrent requests are computed together, by one thread."""

import queue
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

Answer = TypeVar("Answer")


class _Waiting(NamedTuple, Generic[Answer]):
    image: Tensor
    group: Hashable
    answer: Future[Answer]


class Batcher(Generic[Answer]):
    """Computes images in batches.

    Args:
        compute: function that returns the N answers for a batch (N, 3, H, W) and its group.
        size: maximum number of images in a batch.
        wait: number of seconds that the first image of a batch waits for others.
        observe: function called with the number of images of each batch.
    """

    def __init__(
        self,
        compute: Callable[[Tensor, Hashable], Sequence[Answer]],
        size: int,
        wait: float,
        observe: Callable[[float], None],
    ) -> None:
        self._compute, self._size, self._wait, self._observe = compute, size, wait, observe
        self._queue: queue.SimpleQueue[_Waiting[Answer] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def submit(self, image: Tensor, group: Hashable = None) -> Future[Answer]:
        """Queue an image.

        Args:
            image: (3, H, W) image.
            group: group of the image; only images of one group, and of one size, are computed together.
        """
        answer: Future[Answer] = Future()
        self._queue.put(_Waiting(image, group, answer))
        return answer

    def close(self) -> None:
        """Compute what is queued, and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        ends = False
        while not ends and (first := self._queue.get()) is not None:
            batch, deadline = [first], time.monotonic() + self._wait
            with suppress(queue.Empty):
                while len(batch) < self._size and not ends:
                    following = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
                    if following is None:
                        ends = True
                    else:
                        batch.append(following)
            # Canceled: its request was refused meanwhile.
            groups: dict[Hashable, list[_Waiting[Answer]]] = {}
            for item in batch:
                if item.answer.set_running_or_notify_cancel():
                    groups.setdefault((item.image.shape, item.group), []).append(item)
            for items in groups.values():
                self._answer(items)

    def _answer(self, items: list[_Waiting[Answer]]) -> None:
        """Compute a batch; if it fails, each of its images alone, so that one does not take others with it."""
        try:
            answers = self._compute(torch.stack([item.image for item in items]), items[0].group)
        except Exception as error:
            if len(items) == 1:
                items[0].answer.set_exception(error)
            else:
                for item in items:
                    self._answer([item])
            return
        self._observe(len(items))
        for item, answer in zip(items, answers, strict=True):
            item.answer.set_result(answer)
