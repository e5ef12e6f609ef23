"""The app: its routes and middleware, and the routes that report its state."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import FileResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles

import pipeline
from pipeline.inference.openvino_cpu import N_THREADS
from pipeline.monitoring.prediction_log import PredictionLog
from pipeline.params import Serve
from serving import problems, review_routes, scoring_routes
from serving.allowed_sites import AllowedSites
from serving.app_state import AppState, State
from serving.current_model import ModelHolder
from serving.limits import RequestLimits
from serving.problems import documented
from serving.prometheus_metrics import RequestMetrics

STATIC = Path(__file__).with_name("static")
router = APIRouter()


def create_app(
    settings: Serve,
    holder: ModelHolder,
    prediction_log: PredictionLog,
    api_key: str | None,
    host_names: Sequence[str] = (),
) -> FastAPI:
    """Return the API with its page, which answers under `host_names` too; the app starts and stops `holder`."""
    state = AppState(settings, holder, prediction_log)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Maps and overlays: as many at once as there are cores, so that images are scored between their batches.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(N_THREADS, thread_name_prefix="work"))
        state.start()
        yield
        state.stop()

    app = FastAPI(
        title="Concrete cracks",
        description="Find cracks in photos of concrete.",
        version=pipeline.__version__,
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from other sites
        redoc_url=None,
    )
    app.state.state = state
    problems.install(app)
    for routes in (scoring_routes.router, review_routes.router, router):
        app.include_router(routes)
    app.mount("/static", StaticFiles(directory=STATIC))
    app.add_middleware(RequestLimits, settings=settings, api_key=api_key)
    app.add_middleware(AllowedSites, names=host_names)
    app.add_middleware(RequestMetrics, metrics=state.metrics)
    return app


@router.get("/healthz", response_class=PlainTextResponse)
async def healthz() -> str:
    """Return 200 while the process runs."""
    return "alive\n"


@router.get("/readyz", response_class=PlainTextResponse, responses=documented(HTTPStatus.SERVICE_UNAVAILABLE))
async def readyz(state: State) -> str:
    """Return the current model; 503 if there is none."""
    return f"serving {state.loaded_model().version}\n"


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(state: State) -> Response:
    """Return the metrics in Prometheus' text format."""
    return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """Return the page."""
    return FileResponse(STATIC / "index.html")
