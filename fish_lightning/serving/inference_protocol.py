"""The Open Inference Protocol (v2), as Triton and KServe speak it: tensors as JSON or as bytes behind it.

Source: https://github.com/kserve/open-inference-protocol, and Triton's extensions "binary tensor data" and "model
parameters". Images are decoded pixels here; for files there is ``/predict``.
"""

import asyncio
import json
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from fish_lightning.serving.limits import Limits, Refusal
from fish_lightning.serving.predictor import Answer, Predictor
from fish_lightning.serving.uploads import parse_json, read_body

PREFIX = "/v2"
VERSION = "1"
INPUT = {"name": "images", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}  # N, H, W, RGB
#: Header with the length of the JSON that tensors follow.
JSON_LENGTH = "inference-header-content-length"
_TYPES = {"probabilities": "FP32", "uncertain": "BOOL", "unknown": "BOOL"}


class AsciiJSON(JSONResponse):
    """Escapes what is not ASCII: a class or a file whose name is not UTF-8 has characters that UTF-8 cannot encode."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


Work = Callable[[Request, Callable[[], Awaitable[Response]]], Awaitable[Response]]


def protocol_routes(name: str, predictor: Predictor, limits: Limits, work: Work) -> APIRouter:
    """Return the routes.

    Args:
        name: name of the model.
        predictor: predictor that answers the requests.
        limits: limits of a request.
        work: callable that runs a handler within the limits.
    """
    router = APIRouter(prefix=PREFIX, tags=["Open Inference Protocol"])
    outputs = [
        {"name": output, "datatype": datatype, "shape": [-1, len(predictor.classes)] if output[0] == "p" else [-1]}
        for output, datatype in _TYPES.items()
        if output == "probabilities" or output in predictor.marks
    ]
    known = [str(output["name"]) for output in outputs]

    def require_model(given: str, version: str = VERSION) -> None:
        if (given, version) != (name, VERSION):
            raise Refusal(404, "not_found", f"no model {given[:100]} of version {version[:100]}; this is {name} of 1")

    @router.get("", summary="Name of the server")
    async def server() -> dict[str, Any]:
        return {"name": "fish_lightning", "version": VERSION, "extensions": ["binary_tensor_data"]}

    @router.get("/health/live", summary="Liveness")
    @router.get("/health/ready", summary="Readiness")
    async def alive() -> Response:
        return Response()

    @router.get("/models/{model}/ready", summary="Model readiness")
    @router.get("/models/{model}/versions/{version}/ready", include_in_schema=False)
    async def ready(model: str, version: str = VERSION) -> Response:
        require_model(model, version)
        return Response()

    @router.get("/models/{model}", summary="Model metadata: inputs and outputs")
    @router.get("/models/{model}/versions/{version}", include_in_schema=False)
    async def metadata(model: str, version: str = VERSION) -> dict[str, Any]:
        require_model(model, version)
        shared = {"name": name, "versions": [VERSION], "platform": "fish_lightning"}
        return shared | {"inputs": [INPUT], "outputs": outputs, "parameters": {"classes": list(predictor.classes)}}

    @router.post("/models/{model}/infer", summary="Run inference on decoded images")
    @router.post("/models/{model}/versions/{version}/infer", include_in_schema=False)
    async def infer(request: Request, model: str, version: str = VERSION) -> Response:
        async def handle() -> Response:
            require_model(model, version)
            body = await read_body(request, limits)
            length = request.headers.get(JSON_LENGTH)
            if length is not None and not (re.fullmatch(r"[0-9]{1,18}", length) and int(length) <= len(body)):
                raise Refusal(400, "malformed_request", f"{JSON_LENGTH} is not a length within the body")
            end = len(body) if length is None else int(length)
            asked = await asyncio.to_thread(parse_json, body[:end])
            images = await asyncio.to_thread(_images, asked, body[end:], limits)
            wanted, binary = _wanted(asked, known)
            answers = await predictor.answers_of_pixels(images)
            tensors = {output: _tensor(output, answers) for output in wanted}
            head = {"model_name": name, "model_version": VERSION}
            if isinstance(asked.get("id"), str):
                head["id"] = asked["id"]
            return _encoded(head, tensors, binary)

        return await work(request, handle)

    return router


def _images(asked: dict[str, Any], raw: bytes, limits: Limits) -> npt.NDArray[np.uint8]:
    """Return the images (N, H, W, 3) of a request.

    Raises:
        Refusal: the request's tensor does not contain images.
    """

    def malformed(why: str) -> Refusal:
        return Refusal(400, "malformed_request", f"inputs: {why}")

    inputs = asked.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise malformed("expected one tensor")
    tensor = inputs[0]
    shape, parameters = tensor.get("shape"), tensor.get("parameters") or {}
    if (tensor.get("name"), tensor.get("datatype")) != (INPUT["name"], INPUT["datatype"]):
        raise malformed(f"expected {INPUT['name']} of datatype {INPUT['datatype']}")
    if not isinstance(shape, list) or not all(type(n) is int and 0 < n < 2**31 for n in shape) or shape[3:] != [3]:
        raise malformed("expected the shape [N, height, width, 3]")
    if shape[0] > limits.max_files:
        raise Refusal(413, "too_many_files", f"more than {limits.max_files} images in a request")
    size = math.prod(shape)
    if isinstance(parameters, dict) and "binary_data_size" in parameters:
        if parameters["binary_data_size"] != len(raw) or len(raw) != size:
            raise malformed(f"expected {size} bytes of binary data")
        return np.frombuffer(raw, np.uint8).reshape(shape)
    try:
        data = np.asarray(tensor.get("data"))
    except ValueError:  # ragged
        data = np.empty(0)
    if data.dtype.kind not in "iu" or data.size != size or data.min() < 0 or data.max() > 255:
        raise malformed(f"expected {size} integers from 0 to 255 as data")
    return data.astype(np.uint8).reshape(shape)


def _wanted(asked: dict[str, Any], known: Sequence[str]) -> tuple[list[str], set[str]]:
    """Return the names of the outputs that a request asks for, and which of them as bytes.

    Raises:
        Refusal: there is no such output.
    """
    parameters = asked.get("parameters")
    all_binary = isinstance(parameters, dict) and parameters.get("binary_data_output") is True
    wanted = asked.get("outputs") or [{"name": name} for name in known]
    if not isinstance(wanted, list) or not all(isinstance(o, dict) and o.get("name") in known for o in wanted):
        raise Refusal(400, "malformed_request", f"outputs: expected names among {', '.join(known)}")

    def is_binary(output: dict[str, Any]) -> bool:
        own = output.get("parameters")
        return bool(own["binary_data"]) if isinstance(own, dict) and "binary_data" in own else all_binary

    return [output["name"] for output in wanted], {output["name"] for output in wanted if is_binary(output)}


def _tensor(output: str, answers: Sequence[Answer]) -> npt.NDArray[np.generic]:
    """Return an output of all images; probabilities are calibrated where they can be."""
    if output != "probabilities":
        return np.array([getattr(answer, output) for answer in answers])
    return np.array([a.probabilities if a.calibrated is None else a.calibrated for a in answers], np.float32)


def _encoded(head: dict[str, Any], tensors: dict[str, npt.NDArray[np.generic]], binary: set[str]) -> Response:
    """Return the response: JSON, followed by the tensors that were asked for as bytes."""
    outputs, raw = [], []
    for name, values in tensors.items():
        output: dict[str, Any] = {"name": name, "datatype": _TYPES[name], "shape": list(values.shape)}
        if name in binary:
            raw.append(values.tobytes())
            output["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            output["data"] = values.ravel().tolist()
        outputs.append(output)
    content = head | {"outputs": outputs}
    if not raw:
        return AsciiJSON(content)
    text = json.dumps(content).encode()
    headers = {JSON_LENGTH: str(len(text))}
    return Response(b"".join([text, *raw]), media_type="application/octet-stream", headers=headers)
