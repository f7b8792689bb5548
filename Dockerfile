# `art serve` in a container; docs/serverless.md, "In a container", shows how to build and start it.
#
#   docker build --target cpu --build-arg TORCH_INDEX=URL -t art-serve:cpu .
#   docker build --target cuda -t art-serve:cuda .
#
# Versions are those of locks/. Nothing secret is in a layer: the key is made on the first start, in
# the volume, or comes as ART_API_KEY when the container starts.
ARG PYTHON=docker.io/library/python:3.13-slim-bookworm

# A compiler stays in the image: torch and Triton compile kernels while a model trains.
FROM ${PYTHON} AS base
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/art/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

FROM base AS build
# The index that has the wanted build of torch; without one, pip's own, which has CUDA's on Linux.
ARG TORCH_INDEX=""
WORKDIR /src
RUN python3 -m venv /opt/art
COPY locks/all.txt locks/
COPY plugins/local/art_local/vllm/packages.py plugins/local/art_local/vllm/
RUN python plugins/local/art_local/vllm/packages.py --constraint locks/all.txt \
        ${TORCH_INDEX:+--index "$TORCH_INDEX"} \
    && pip install --constraint locks/all.txt hatchling
COPY LICENSE README.md CHANGELOG.md pyproject.toml ./
COPY art_core art_core
COPY plugins/local plugins/local
COPY plugins/serverless plugins/serverless
RUN pip install --constraint locks/all.txt --no-build-isolation \
        '.[openai,endpoint,prices]' ./plugins/local './plugins/serverless[server,tinker]' \
    && pip uninstall --yes hatchling \
    && art --version

# vLLM has an environment of its own, beside art's. It is chosen by name: a build has no GPU to find.
FROM build AS engines
ENV ART_ENGINES=/opt/engines
RUN python -c "from art_local.vllm.install import install; install(variant='cuda', progress=False)"

FROM base AS serve
RUN groupadd --gid 10001 art \
    && useradd --uid 10001 --gid art --home-dir /data --shell /usr/sbin/nologin art \
    && install --directory --owner=art --group=art --mode=0700 /data
COPY --from=build /opt/art /opt/art
ENV ART_DIR=/data \
    HF_HOME=/data/huggingface \
    HOME=/data
USER 10001:10001
WORKDIR /data
# Models, checkpoints, jobs, the key, and base models from the hub.
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s CMD ["python", "-c", \
    "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health', timeout=4)"]
ENTRYPOINT ["art", "serve", "--host", "0.0.0.0", "--port", "8080"]
CMD ["--backend", "local"]

FROM serve AS cuda
ENV ART_ENGINES=/opt/engines \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all
COPY --from=engines /opt/engines /opt/engines

# The last stage is built when none is named.
FROM serve AS cpu
