"""From the bytes of an image to its answer: decoding in threads, the model in batches, calibration."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fish_lightning.data.decoding import InMemory, TooManyPixels, UnreadableImage, decode, opened
from fish_lightning.errors import UserError
from fish_lightning.evaluation.arrays import Floats
from fish_lightning.evaluation.heatmaps import find_stage, heat_maps, upsampled
from fish_lightning.evaluation.stored_calibration import apply_calibration
from fish_lightning.models.trained import TrainedModel
from fish_lightning.plotting.thumbnails import data_uri
from fish_lightning.predicting.rows import MAX_PROBABILITIES
from fish_lightning.serving.batching import Batcher
from fish_lightning.serving.limits import Budget, Limits, Refusal
from fish_lightning.serving.uploads import Upload, called

#: Gray of more than 8 bits is scaled in 64-bit floating point: its pixels take this many times the memory.
WIDE = 3
HEAT = (255, 72, 0)  # red, green, blue where an answer comes from


@dataclass(frozen=True)
class Answer:
    """What the model says about an image.

    Attributes:
        probabilities: (C,) softmax of the logits.
        calibrated: (C,) probabilities after temperature scaling; None without a temperature.
        uncertain: whether the highest of ``probabilities`` is below the threshold; None without one.
        unknown: whether the image is of none of the classes; None without a threshold.
        heat_map: heat map as a data URI; None unless requested.
    """

    probabilities: Floats
    calibrated: Floats | None
    uncertain: bool | None
    unknown: bool | None
    heat_map: str | None = None

    def as_json(self, file: str, classes: Sequence[str]) -> dict[str, Any]:
        """Return the answer for ``file``, with the names that ``predictions.json`` gives the same things."""
        order = np.argsort(-self.probabilities, kind="stable")[:MAX_PROBABILITIES].tolist()
        named, calibrated = (
            None if values is None else {classes[c]: float(values[c]) for c in order}
            for values in (self.probabilities, self.calibrated)
        )
        return {
            "file": file,
            "class": classes[order[0]],
            "probability": float(self.probabilities[order[0]]),
            "calibrated_probability": None if self.calibrated is None else float(self.calibrated[order[0]]),
            "probabilities": named,
            "calibrated_probabilities": calibrated,
            "uncertain": self.uncertain,
            "unknown": self.unknown,
            **({} if self.heat_map is None else {"heat_map": self.heat_map}),
        }


class Predictor:
    """Answers the images of all requests with one model.

    Args:
        trained: the model.
        trainer: trainer whose device and precision are used, so that answers are those of ``predict``.
        limits: limits of a request.
        observe: function called with the number of images of each batch.

    Attributes:
        classes: class names in label order.
        calibrated: whether probabilities are calibrated.
        marks: marks that answers can have, of ``uncertain`` and ``unknown``.
        explains: whether heat maps are available: for a checkpoint whose network has feature maps.
    """

    def __init__(
        self, trained: TrainedModel, trainer: L.Trainer, limits: Limits, observe: Callable[[float], None]
    ) -> None:
        self.classes = tuple(trained.module.class_names)
        self._module, self._stored = trained.module, trained.calibration
        self.calibrated = self._stored.get("temperature") is not None
        thresholds = {"uncertain": "selective", "unknown": "unknown"}
        self.marks = [
            mark for mark, key in thresholds.items() if (self._stored.get(key) or {}).get("threshold") is not None
        ]
        self._device, self._precision = trainer.strategy.root_device, trainer.precision_plugin
        self._precision.convert_module(self._module.to(self._device))
        self._transforms, self._transform = threading.local(), trained.transform
        self.explains = self._finds_feature_maps()
        self._limits = limits
        self._memory = Budget(limits.max_pixels)
        self._threads = ThreadPoolExecutor(limits.threads, "decode")
        self._batcher: Batcher[Answer] = Batcher(self._compute, limits.batch_size, limits.batch_wait, observe)

    def close(self) -> None:
        """Finish what is queued, and end the threads."""
        self._threads.shutdown()
        self._batcher.close()

    async def answers(self, uploads: list[Upload], heat: bool) -> list[Answer]:
        """Return the answers for encoded images, in their order.

        Args:
            uploads: the files of a request.
            heat: whether to add ``heat_map``.

        Raises:
            Refusal: a file is not an image, is corrupt, or has too many pixels: none of them is answered.
        """
        jobs = (self._of_file(upload, called(upload.name, number), heat) for number, upload in enumerate(uploads, 1))
        return await _all(jobs)

    async def answers_of_pixels(self, images: npt.NDArray[np.uint8]) -> list[Answer]:
        """Return the answers for decoded RGB images (N, H, W, 3).

        Raises:
            Refusal: an image has too many pixels.
        """
        self._require_few_pixels("images", *images.shape[1:3])
        size = images.shape[1] * images.shape[2]
        return await _all(self._of_pixels(size, False, self._transformed, image) for image in images)

    async def _of_file(self, upload: Upload, name: str, heat: bool) -> Answer:
        pixels = await self._in_thread(self._pixels, upload.content, name)
        return await self._of_pixels(pixels, heat, self._decode, upload.content, name)

    async def _of_pixels(self, pixels: int, heat: bool, function: Callable[..., Tensor], *arguments: Any) -> Answer:
        """Return the answer for the image that ``function`` returns, which needs the memory of ``pixels`` pixels."""
        async with self._memory.of(pixels):
            image = await self._in_thread(function, *arguments)
            return await asyncio.wrap_future(self._batcher.submit(image, heat))

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def _pixels(self, content: bytes, name: str) -> int:
        """Return the number of pixels whose memory an image takes, from its header."""
        with _readable(), opened(InMemory(content, name)) as image:
            (width, height), mode = image.size, image.mode
        self._require_few_pixels(name, height, width)
        return width * height * (WIDE if mode[0] in "IF" else 1)

    def _require_few_pixels(self, name: str, height: int, width: int) -> None:
        if height * width > self._limits.max_pixels:
            message = f"{name}: {width} x {height} pixels are more than {self._limits.max_pixels:,}"
            raise Refusal(413, "too_many_pixels", message)

    def _decode(self, content: bytes, name: str) -> Tensor:
        with _readable():
            return self._transformed(decode(InMemory(content, name)))

    def _transformed(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        """Return (H, W, 3) pixels as the model takes them, (3, h, w). Threads do not share a pipeline."""
        if not hasattr(self._transforms, "own"):
            self._transforms.own = deepcopy(self._transform)
        image: Tensor = self._transforms.own(image=pixels)["image"]
        return image

    def _compute(self, images: Tensor, heat: Hashable) -> list[Answer]:
        """Return the answers for a batch (N, 3, h, w)."""
        on_device = images.to(self._device)
        with torch.inference_mode(), self._precision.predict_step_context():
            logits, features = (part.cpu() for part in self._module.logits_and_features(on_device))
        # Half precision: a threshold of the features was chosen so.
        found = apply_calibration(self._stored, logits.numpy(), features.half().numpy())
        pictures = self._heat(on_device, logits.argmax(1)) if heat else [None] * len(images)
        return [
            Answer(
                found.probabilities[i],
                None if found.calibrated is None else found.calibrated[i],
                None if found.uncertain is None else bool(found.uncertain[i]),
                None if found.unknown is None else bool(found.unknown[i]),
                picture,
            )
            for i, picture in enumerate(pictures)
        ]

    def _heat(self, images: Tensor, classes: Tensor) -> list[str]:
        """Return the images (N, 3, h, w) as the model sees them with their Grad-CAM heat maps, as data URIs."""
        normalized = self._module.normalize(images)
        heat = upsampled(heat_maps(self._module.network, normalized, classes), *images.shape[2:])[..., None]
        gray = images.cpu().permute(0, 2, 3, 1).float().mean(3, keepdim=True).numpy()
        opacity = 0.75 * heat
        mixed = (1 - opacity) * (0.5 * gray + 64) + opacity * np.array(HEAT)  # pale, so that the heat stands out
        return [data_uri(Image.fromarray(picture), "png") for picture in mixed.clip(0, 255).astype(np.uint8)]

    def _finds_feature_maps(self) -> bool:
        network = getattr(self._module, "network", None)
        if network is None:  # an export
            return False
        blank: Tensor = self._transformed(np.zeros((224, 224, 3), np.uint8)).unsqueeze(0).to(self._device)
        try:
            with self._precision.predict_step_context():
                find_stage(network, self._module.normalize(blank))
        except UserError:
            return False
        return True


@contextmanager
def _readable() -> Iterator[None]:
    """Refuse an image that cannot be read."""
    try:
        yield
    except TooManyPixels as error:
        raise Refusal(413, "too_many_pixels", str(error)) from None
    except UnreadableImage as error:
        raise Refusal(422, "unreadable_image", str(error)) from None


async def _all(answers: Iterable[Awaitable[Answer]]) -> list[Answer]:
    """Return all answers; the first failure cancels the others."""
    tasks = [asyncio.ensure_future(answer) for answer in answers]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
