# Two images from one wheel:
#   docker build --target gateway -t leafcutter-gateway .    the gateway alone, no torch
#   docker build --target engine -t leafcutter-engine .      the official vLLM image with the eviction plugin in it
# Every version that is chosen here:
ARG PYTHON_VERSION=3.12
ARG VLLM_VERSION=0.32.0

FROM python:${PYTHON_VERSION}-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md ./
COPY router router
COPY engine_patches engine_patches
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:${PYTHON_VERSION}-slim AS gateway
COPY deploy/locks/gateway.txt /opt/leafcutter/gateway.txt
RUN pip install --no-cache-dir --no-deps -r /opt/leafcutter/gateway.txt
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel pip install --no-cache-dir --no-deps /wheel/*.whl
RUN useradd --system --uid 10001 --no-create-home leafcutter
USER 10001
# A container is reached from outside itself, so it cannot listen on loopback alone.
ENV LEAFCUTTER_HOST=0.0.0.0 \
    LEAFCUTTER_PORT=30000 \
    PYTHONUNBUFFERED=1
EXPOSE 30000
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['LEAFCUTTER_PORT'] + '/health', timeout=4)"]
ENTRYPOINT ["leafcutter", "serve"]

# The image's entry point (`vllm serve`) stays: what follows the image's name is the model and vLLM's own options.
FROM vllm/vllm-openai:v${VLLM_VERSION} AS engine
# --no-deps: the plugin needs nothing that vLLM does not bring, and must not change what the image was tested with.
# The second command is the check that vLLM's Python finds the plugin.
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    uv pip install --system --no-cache --no-deps /wheel/*.whl && \
    python3 -c "from importlib.metadata import entry_points; entry_points(group='vllm.general_plugins')['leafcutter'].load()"
ENV LEAFCUTTER_EVICTION=rlt_gix
