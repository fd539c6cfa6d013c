# docker build --target cpu -t slipstream:cpu .          no GPU: make shards, small trainings, evaluation
# docker build -t slipstream .                           with a GPU: docker run --gpus all -v /data:/data slipstream train …
# Built nowhere yet: the machine these files were written on has no Docker. tests/test_container.py runs its CPU steps without.

FROM python:3.11-slim AS wheel
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

# The pinned versions, without their hashes: constraints.txt also has DALI, which only a GPU needs.
FROM python:3.11-slim AS cpu
COPY constraints.txt /tmp/
RUN grep -v -- --hash /tmp/constraints.txt | tr -d '\\' > /tmp/pins.txt
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    pip install --no-cache-dir --constraint /tmp/pins.txt /dist/*.whl
WORKDIR /data
ENTRYPOINT ["slipstream"]

# NVDEC needs the driver's video capability, which the CUDA images do not ask for by themselves.
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04 AS cuda
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility,video PATH=/opt/venv/bin:$PATH
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
COPY constraints.txt /tmp/
RUN pip install --no-cache-dir --require-hashes -r /tmp/constraints.txt
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist pip install --no-cache-dir --no-deps /dist/*.whl
WORKDIR /data
ENTRYPOINT ["slipstream"]
