"""The server's app: predictions as JSON, the Open Inference Protocol, a page for people, metrics and documentation.

It is built on FastAPI and uvicorn. LitServe (0.2.19), Lightning's own engine, does not meet the requirements: it fails
a whole batch for one bad file in it, counts requests instead of images into a batch, decodes them one after
another in the process that then computes, passes each upload through a queue without a bound in a process of its own,
and replaces attributes of Starlette for the whole process. ``scripts/benchmark_serving.py`` compares the two.
"""

import asyncio
import hmac
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from omegaconf import DictConfig
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from fish_lightning import __version__
from fish_lightning.files import run_of
from fish_lightning.models.exported import MODEL_FILE, is_export
from fish_lightning.models.trained import open_model
from fish_lightning.report.predictions import missing_thresholds
from fish_lightning.run_log import say
from fish_lightning.serving.inference_protocol import PREFIX, AsciiJSON, protocol_routes
from fish_lightning.serving.limits import Limits, Refusal
from fish_lightning.serving.metrics import Metrics
from fish_lightning.serving.predictor import Predictor
from fish_lightning.serving.uploads import read_uploads
from fish_lightning.training.trainer import build_trainer

PAGE = Path(__file__).parent / "page"
#: The page loads nothing from elsewhere; pictures are those that the user chose (blob:) and heat maps (data:).
POLICY = "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_NAMED = {"name": {"type": "string"}, "data": {"type": "string", "description": "base64"}}
_FILES = {
    "multipart/form-data": {"type": "string", "format": "binary"},
    "application/json": {"type": "object", "properties": _NAMED},
}
_BODY = {
    media_type: {
        "schema": {"type": "object", "properties": {"files": {"type": "array", "items": file}}, "required": ["files"]}
    }
    for media_type, file in _FILES.items()
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": '{"error": {"code", "message"}}: what is wrong with the request'},
    "503": {"description": '{"error": {"code", "message"}}: overloaded; Retry-After says when to try again'},
}


def app_of(cfg: DictConfig) -> FastAPI:
    """Return the app of a config, and say what is not calibrated. Both ``serve`` and Ray Serve begin here.

    Args:
        cfg: the composed ``conf/serve.yaml``.

    Raises:
        UserError: there is no such model, or it is corrupt, or this machine does not have its device.
    """
    trained = open_model(cfg.ckpt, cfg.tta)
    for line in [trained.note] if trained.note else missing_thresholds(trained.calibration):
        say(line)
    limits, metrics = Limits(**cfg.serve), Metrics()
    predictor = Predictor(
        trained, build_trainer(cfg.trainer, precision=trained.precision), limits, metrics.batch.observe
    )
    model = Path(cfg.ckpt).expanduser()
    name = re.sub(r"[^\w.-]+", "_", run_of(model.absolute()).name, flags=re.ASCII)  # fit for a URL
    if is_export(model):
        name = str(json.loads((model / MODEL_FILE).read_text(encoding="utf-8"))["name"])  # as Triton has it
    return build_app(name, predictor, limits, metrics)


def build_app(name: str, predictor: Predictor, limits: Limits, metrics: Metrics) -> FastAPI:
    """Return the app.

    Args:
        name: name of the model.
        predictor: predictor that answers the requests; closed when the server ends.
        limits: limits of a request.
        metrics: metrics, which the app updates.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(predictor.close)

    app = FastAPIOffline(
        docs_url="/docs",  # documentation that loads nothing from elsewhere; no second one
        redoc_url=None,
        title=f"fish_lightning: {name}",
        version=__version__,
        default_response_class=AsciiJSON,
        lifespan=lifespan,
        exception_handlers=_handlers(limits),
    )
    work = _Work(limits, metrics)
    with_token = [Depends(_token_check(limits.token))]

    @app.post(
        "/predict",
        summary="Predict the classes of images",
        dependencies=with_token,
        responses=_ERRORS,
        openapi_extra={"requestBody": {"required": True, "content": _BODY}},
    )
    async def predict(request: Request, heat_map: bool = False) -> Response:
        """Send PNG, JPEG, WebP, BMP or TIFF files. `heat_map=true` adds Grad-CAM heat maps."""

        async def handle() -> Response:
            if heat_map and not predictor.explains:
                raise Refusal(400, "no_heat_maps", "heat maps need a checkpoint of a network with feature maps")
            uploads = await read_uploads(request, limits)
            answers = await predictor.answers(uploads, heat_map)
            metrics.images.inc(len(answers))
            files = zip(uploads, answers, strict=True)
            return AsciiJSON(
                {"predictions": [answer.as_json(upload.name, predictor.classes) for upload, answer in files]}
            )

        return await work(request, handle)

    @app.get("/about", summary="Model and limits", dependencies=with_token)
    async def about() -> dict[str, Any]:
        return {
            "name": name,
            "classes": list(predictor.classes),
            "calibrated": predictor.calibrated,
            "marks": predictor.marks,
            "heat_maps": predictor.explains,
            "max_file_bytes": limits.max_file_bytes,
            "max_pixels": limits.max_pixels,
        }

    @app.get("/health", summary="Health check")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", summary="Prometheus metrics", dependencies=with_token)
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": POLICY})

    app.include_router(protocol_routes(name, predictor, limits, work), dependencies=with_token)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    return app


class _Work:
    """Runs requests within the limits, and counts them."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits, self._metrics = limits, metrics
        self._requests = self._bytes = 0

    async def __call__(self, request: Request, handle: Callable[[], Awaitable[Response]]) -> Response:
        """Return the response of ``handle``.

        Raises:
            Refusal: ``handle`` refuses the request, there are too many requests in flight, or the time limit is
                exceeded.
        """
        start, code = time.perf_counter(), "internal_error"
        most = self._limits.max_request_bytes
        size = min(int(request.headers.get("content-length", most)), most)
        try:
            if self._requests >= self._limits.queue or self._bytes + size > self._limits.queue_bytes:
                raise Refusal(503, "busy", "too many requests in flight: try again")
            response = await self._within_limits(request, size, handle)
            code = "ok"
            return response
        except Refusal as refusal:
            code = refusal.code
            raise
        finally:
            self._metrics.requests.labels(request.scope["route"].path, code).inc()
            self._metrics.seconds.observe(time.perf_counter() - start)

    async def _within_limits(self, request: Request, size: int, handle: Callable[[], Awaitable[Response]]) -> Response:
        self._requests, self._bytes = self._requests + 1, self._bytes + size
        try:
            with self._metrics.in_flight.track_inprogress():
                return await asyncio.wait_for(handle(), self._limits.timeout)
        except asyncio.TimeoutError:
            seconds = f"{self._limits.timeout:g} seconds"
            if not getattr(request.state, "complete", False):
                raise Refusal(408, "slow_request", f"the request took more than {seconds} to arrive") from None
            raise Refusal(503, "timeout", f"no answer within {seconds}: try again, with fewer files") from None
        finally:
            self._requests, self._bytes = self._requests - 1, self._bytes - size


def _token_check(token: str | None) -> Callable[..., None]:
    """Return the dependency of paths that need the token."""
    scheme = HTTPBearer(auto_error=False, description="`serve.token` of the server, if it has one")

    def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(scheme)]) -> None:
        if token is None:
            return
        if given is None or not hmac.compare_digest(given.credentials.encode(), token.encode()):
            raise Refusal(401, "unauthorized", "send the server's token: Authorization: Bearer TOKEN")

    return check


def _handlers(limits: Limits) -> dict[Any, Callable[..., Awaitable[Response]]]:
    """Return what turns exceptions into errors."""

    async def refused(request: Request, refusal: Refusal) -> Response:
        await _discard_rest(request, limits)
        return _error(request, refusal)

    async def of_http(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "malformed_request")
        response = await refused(request, Refusal(error.status_code, code, str(error.detail)))
        response.headers.update(error.headers or {})
        return response

    async def invalid(request: Request, error: RequestValidationError) -> Response:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        return await refused(request, Refusal(400, "malformed_request", f"{where}: {error.errors()[0]['msg']}"))

    async def bug(request: Request, error: Exception) -> Response:  # its traceback is printed by uvicorn
        return _error(request, Refusal(500, "internal_error", "internal error; see the server's log"))

    return {Refusal: refused, HTTPException: of_http, RequestValidationError: invalid, Exception: bug}


def _error(request: Request, refusal: Refusal) -> Response:
    error: dict[str, Any] = {"error": {"code": refusal.code, "message": refusal.message}}
    if request.url.path.startswith(f"{PREFIX}/"):
        error = {"error": refusal.message, "code": refusal.code}  # as the protocol has it
    return AsciiJSON(error, refusal.status, headers=dict(refusal.headers))


async def _discard_rest(request: Request, limits: Limits) -> None:
    """Read what is left of a refused request, up to a limit: most clients read an answer only when they have sent all.

    The rest is not read where the client waits for permission to send it.
    """
    if "expect" in request.headers or getattr(request.state, "complete", False):
        return

    async def discard() -> None:
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > limits.max_request_bytes:
                return

    # RuntimeError: the body has been read.
    with suppress(asyncio.TimeoutError, ClientDisconnect, RuntimeError):
        await asyncio.wait_for(discard(), limits.timeout)
