# Two images from one lock. `api` answers requests and has nothing that trains; `worker` runs the flows and the stages.
#
#   docker build --build-arg GIT_COMMIT="$(git rev-parse HEAD)" --tag concrete-cracks-api .
#   docker build --build-arg GIT_COMMIT="$(git rev-parse HEAD)" --target worker --tag concrete-cracks-worker .
#
# Both run as user 10001 and with `docker run --read-only --tmpfs /tmp`; mlflow/compose.yaml names what else is written.

FROM python:3.11.14-slim-bookworm AS build
WORKDIR /app
ENV VIRTUAL_ENV=/app/.venv PATH=/app/.venv/bin:$PATH UV_LINK_MODE=copy UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1 \
    UV_CONSTRAINT=requirements.lock UV_BUILD_CONSTRAINT=requirements.lock
COPY pyproject.toml requirements.lock ./
# uv itself comes from the lock, by hash. With it, each image installs its part of pyproject.toml at the pins and hashes of
# the lock.
RUN sed -n '/^uv==/,/[^\\]$/p' requirements.lock > /tmp/uv.lock \
    && python -m pip install --no-cache-dir --require-hashes --no-deps -r /tmp/uv.lock \
    && python -m venv .venv

FROM build AS build-worker
RUN uv pip compile --quiet --extra server --extra cluster --output-file /tmp/pins.txt pyproject.toml \
    && uv pip sync --require-hashes /tmp/pins.txt
COPY README.md LICENSE ./
COPY pipeline pipeline
COPY flows flows
COPY serving serving
# uv leaves a lock behind that anyone may write to.
RUN uv pip install --no-deps --no-build-isolation --editable . \
    && python -m compileall -q pipeline flows serving \
    && rm .venv/.lock

FROM build AS build-api
RUN uv pip compile --quiet --group api --output-file /tmp/pins.txt \
    && uv pip sync --require-hashes /tmp/pins.txt
COPY pipeline pipeline
COPY serving serving
RUN python -m compileall -q pipeline serving && rm .venv/.lock

FROM python:3.11.14-slim-bookworm AS runtime
ARG GIT_COMMIT=unknown
# The commit is known from the build: an image has neither git nor its history.
ENV GIT_COMMIT=${GIT_COMMIT} \
    GIT_PYTHON_REFRESH=quiet \
    PATH=/app/.venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    DO_NOT_TRACK=true \
    MLFLOW_DISABLE_TELEMETRY=true \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    DVC_NO_ANALYTICS=1 \
    DVC_SITE_CACHE_DIR=/tmp/dvc \
    HOME=/tmp
WORKDIR /app
# What API and worker share, each folder a volume: the heartbeat of the schedules, labelled batches, what was answered.
RUN useradd --no-create-home --uid 10001 cracks \
    && mkdir -p .prefect data/inbox data/predictions \
    && chown cracks .prefect data/inbox data/predictions

FROM runtime AS worker
COPY --from=build-worker /app /app
COPY .dvcignore dvc.yaml params.yaml prefect.yaml ./
COPY examples examples
COPY .dvc .dvc
COPY data data
# What is written at run time: these folders, each of which can be a volume, and dvc.lock, which `state` keeps. DVC stops
# at a dvc.lock that leads into nothing, so it starts with one that names no stage.
RUN dvc config --local core.no_scm true \
    && mkdir -p .dvc/cache .dvc/tmp data/incoming mlflow models reports state \
    && ln -s state/dvc.lock dvc.lock \
    && echo "schema: '2.0'" > state/dvc.lock \
    && chown -R cracks .dvc/cache .dvc/tmp data mlflow models reports state
USER 10001
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://localhost:8080/health', timeout=4)"]
ENV PREFECT_HOME=/tmp/prefect PREFECT_RUNNER_SERVER_ENABLE=true
CMD ["python", "-m", "flows"]

FROM runtime AS api
COPY --from=build-api /app /app
COPY params.yaml ./
RUN mkdir data/serving && chown cracks data/serving
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://localhost:8000/healthz', timeout=4)"]
CMD ["python", "-m", "serving", "--params", "params.yaml", "--host", "0.0.0.0"]
