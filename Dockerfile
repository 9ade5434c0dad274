# speedrun-bench in a container: `make image` builds it, `make docker-bench SUB=...` runs a recipe in it.
# For any builder, the classic one too: no syntax line, no mounts.
#
# The base needs Python >= 3.11 with its headers, and apt. torch's wheels bring CUDA, so of the host only the
# driver counts. A tag moves: `make image` looks up the digest it stands for and passes it on as BASE_DIGEST.
ARG BASE_IMAGE=python:3.12-slim

# The packages, in a stage of its own: neither wheels nor pip's leavings reach the image.
FROM ${BASE_IMAGE} AS packages
# LOCK: what is installed by hash. requirements.cuda.lock holds torch and triton too; with requirements.lock,
# TORCH names the build that comes on top, such as torch==2.13.0+cpu, and TORCH_INDEX where pip finds it.
ARG LOCK=requirements.cuda.lock
ARG TORCH=
ARG TORCH_INDEX=
# WHEELS: a folder of the build context with every wheel; then nothing is asked of an index.
ARG WHEELS=requirements.lock
COPY requirements.lock requirements.cuda.lock ${WHEELS} /build/
# Hash-based .pyc files (SOURCE_DATE_EPOCH makes Python write those) hold no time of day, so that two builds
# install the same bytes; and they are written here because a read-only container never could.
RUN set -eu; \
    export SOURCE_DATE_EPOCH=0 PYTHONHASHSEED=0; \
    python3 -m venv /opt/venv; \
    from="${TORCH_INDEX:+--index-url=$TORCH_INDEX}"; \
    offline="--no-index --find-links=/build"; \
    [ "$WHEELS" != requirements.lock ] || offline=; \
    pip="/opt/venv/bin/python -m pip --quiet --no-cache-dir --disable-pip-version-check install --no-deps"; \
    $pip $offline --require-hashes --requirement "/build/$LOCK"; \
    [ -z "$TORCH" ] || $pip ${offline:-$from} "$TORCH"; \
    /opt/venv/bin/python -c 'import torch; print("image: torch", torch.__version__)'

# The checkout, with .git: a record names the commit it was measured at.
FROM ${BASE_IMAGE} AS checkout
ARG WHEELS=requirements.lock
COPY . /speedrun-bench
# Whoever the container runs as may write data, runs, records and the board, and nothing else.
RUN set -eu; cd /speedrun-bench; \
    [ "$WHEELS" = requirements.lock ] || rm -rf "./$WHEELS"; \
    SOURCE_DATE_EPOCH=0 PYTHONHASHSEED=0 python3 -m compileall -q bench kernels model; \
    mkdir -p .data .runs; \
    chmod -R a+rwX .data .runs leaderboard

FROM ${BASE_IMAGE}
# A C and a C++ compiler at run time: triton compiles its launchers, torch.compile its CPU kernels.
RUN set -eu; \
    if ! command -v gcc || ! command -v g++ || ! command -v git; then \
        apt-get update -q; \
        DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends gcc g++ git libc6-dev; \
        rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/*.log; \
    fi >/dev/null; \
    useradd --uid 1000 --user-group --home-dir /speedrun-bench/.data --no-create-home bench; \
    git config --system --add safe.directory /speedrun-bench
ARG BASE_DIGEST=
LABEL speedrun.base="${BASE_DIGEST}"
# HOME lies in the data volume: what libraries cache there has to be kept, and executable.
ENV PATH=/opt/venv/bin:$PATH HOME=/speedrun-bench/.data USER=bench PYTHONUNBUFFERED=1
WORKDIR /speedrun-bench
ENTRYPOINT ["/speedrun-bench/docker-entry.sh"]
USER bench
# Last, for an engine that copies layers whole copies them at every line below.
COPY --from=packages /opt/venv /opt/venv
COPY --from=checkout /speedrun-bench /speedrun-bench
# After the copies, which fill them. /tmp is one so that `--read-only` needs no further option.
VOLUME ["/speedrun-bench/.data", "/speedrun-bench/.runs", "/speedrun-bench/leaderboard", "/tmp"]
