# Not run: this file was linted (hadolint), but no Docker was at hand.
#
#   docker build -t mmadapter .                                                         for CPUs
#   docker build -t mmadapter --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .   for a GPU
#   docker run --rm -it -v "$PWD:/work" --user "$(id -u):$(id -g)" mmadapter train      quick start; runs/ and data/ in this folder
#   docker run --rm -it -v "$PWD:/work" --user "$(id -u):$(id -g)" mmadapter chat       --gpus all: with a GPU
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim-bookworm AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON_VERSION}-slim-bookworm
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" /wheels/*.whl \
    && useradd --create-home --uid 1000 mmadapter \
    && mkdir /work \
    && chown mmadapter /work
# A user of the machine outside, who has no home here, may write caches in /tmp.
ENV HOME=/tmp
USER 1000
WORKDIR /work
ENTRYPOINT ["mmadapter"]
CMD ["--help"]
