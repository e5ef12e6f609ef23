# One image for all that runs: the training flow by default, a stage or `cracks predict` by command.
#
#   docker build --build-arg GIT_COMMIT="$(git rev-parse HEAD)" -t concrete-cracks .
#   docker run --rm -v "$PWD/data/incoming:/app/data/incoming:ro" -v cracks-mlflow:/app/mlflow concrete-cracks

FROM python:3.11.14-slim-bookworm AS build
ENV UV_LINK_MODE=copy PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
COPY requirements.lock ./
# uv itself comes from the lock, by hash, and installs the rest of it.
RUN python -m venv .venv \
    && sed -n '/^uv==/,/[^\\]$/p' requirements.lock > uv.lock \
    && .venv/bin/python -m pip install --require-hashes --no-deps -r uv.lock \
    && VIRTUAL_ENV=/app/.venv .venv/bin/uv pip sync --require-hashes --compile-bytecode --no-cache requirements.lock
COPY pyproject.toml README.md ./
COPY pipeline pipeline
COPY flows flows
COPY serving serving
RUN VIRTUAL_ENV=/app/.venv .venv/bin/uv pip install --no-cache --no-deps --no-build-isolation --editable .

FROM python:3.11.14-slim-bookworm
ARG GIT_COMMIT=unknown
# The commit is known from the build: the image has neither git nor its history.
ENV GIT_COMMIT=${GIT_COMMIT} \
    GIT_PYTHON_REFRESH=quiet \
    PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DVC_NO_ANALYTICS=1
WORKDIR /app
COPY --from=build /app /app
COPY dvc.yaml params.yaml ./
COPY examples examples
COPY .dvc .dvc
COPY data data
RUN dvc config --local core.no_scm true \
    && mkdir -p mlflow \
    && useradd --create-home --uid 10001 cracks \
    && find /app -name .venv -prune -o -exec chown cracks {} +
USER 10001
HEALTHCHECK NONE
CMD ["python", "-m", "flows.training"]
