# Two images: --target operator and --target trainer. Closed networks pass their own base: --build-arg BASE_IMAGE=...
# The base needs Python 3.11 to 3.13 with venv, and ca-certificates. Dependencies come from uv.lock in an early layer, the
# code in a late one, so that a change of code rebuilds and ships in seconds. uv is taken from the PATH or fetched, and
# does not stay in the image.
ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS base
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /app

# What uv.lock says of each image, so that a change of anything else in these files rebuilds no dependencies.
FROM base AS requirements
ARG UV_CACHE_DIR=/root/.cache/uv
COPY pyproject.toml uv.lock /build/
RUN --mount=type=cache,target=/root/.cache/uv set -eu; cd /build; mkdir /requirements; \
    uv=$(command -v uv || { python3 -m venv /tmp/uv && /tmp/uv/bin/pip install -q --no-cache-dir uv && echo /tmp/uv/bin/uv; }); \
    for extra in operator trainer; do \
        "$uv" export --quiet --frozen --no-dev --no-emit-project --no-header --no-annotate \
            --python "$(command -v python3)" --extra $extra --output-file /requirements/$extra.txt; \
    done; \
    rm -rf /tmp/uv

FROM base AS operator
ARG UV_CACHE_DIR=/root/.cache/uv
COPY --from=requirements /requirements/operator.txt /tmp/requirements.txt
RUN --mount=type=cache,target=/root/.cache/uv set -eu; \
    export VIRTUAL_ENV=/opt/venv UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_SYSTEM_CERTS=1; \
    uv=$(command -v uv || { python3 -m venv /tmp/uv && /tmp/uv/bin/pip install -q --no-cache-dir uv && echo /tmp/uv/bin/uv; }); \
    "$uv" venv --quiet --python "$(command -v python3)" /opt/venv; \
    "$uv" pip install --quiet --compile-bytecode --require-hashes --requirement /tmp/requirements.txt; \
    rm -rf /tmp/uv /tmp/requirements.txt
COPY LICENSE /licenses/LICENSE
COPY crds/finetune_api /app/finetune_api
COPY operator/finetune_operator /app/finetune_operator
RUN python -m compileall -q /app
USER 65532:65532
ENTRYPOINT ["python", "-m", "finetune_operator"]

FROM base AS trainer
# For training.compile, which builds its kernels at run time. A base that is not Debian's brings its own compiler.
RUN set -eu; if ! command -v g++ >/dev/null && command -v apt-get >/dev/null; then \
        apt-get update -qq; \
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends g++ libpython3-dev >/dev/null; \
        rm -rf /var/lib/apt/lists/*; \
    fi
ARG UV_CACHE_DIR=/root/.cache/uv
COPY --from=requirements /requirements/trainer.txt /tmp/requirements.txt
RUN --mount=type=cache,target=/root/.cache/uv set -eu; \
    export VIRTUAL_ENV=/opt/venv UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_SYSTEM_CERTS=1; \
    uv=$(command -v uv || { python3 -m venv /tmp/uv && /tmp/uv/bin/pip install -q --no-cache-dir uv && echo /tmp/uv/bin/uv; }); \
    "$uv" venv --quiet --python "$(command -v python3)" /opt/venv; \
    "$uv" pip install --quiet --compile-bytecode --require-hashes --requirement /tmp/requirements.txt; \
    rm -rf /tmp/uv /tmp/requirements.txt
# What NCCL opens for InfiniBand and RoCE. A base that is not Debian's brings its own.
RUN set -eu; if ! ldconfig -p | grep -q libibverbs.so.1 && command -v apt-get >/dev/null; then \
        apt-get update -qq; \
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libibverbs1 ibverbs-providers >/dev/null; \
        rm -rf /var/lib/apt/lists/*; \
    fi
COPY LICENSE /licenses/LICENSE
COPY crds/finetune_api /app/finetune_api
COPY trainer_image/finetune_trainer /app/finetune_trainer
RUN python -m compileall -q /app
USER 65532:65532
ENTRYPOINT ["python", "-m", "finetune_trainer"]
