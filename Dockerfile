# One image for the indexer, the server and the command line; README says how to run it.
# Debian with CPython 3.11 or later, `python` and pip: any such image will do.
ARG BASE_IMAGE=python:3.11-slim-bookworm


FROM ${BASE_IMAGE} AS builder

# A further package index for pip. torch comes with gigabytes of CUDA unless an index of its CPU builds is named here.
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore

# The base's pip fills the environment from outside, so the image carries no second pip.
RUN python -m venv --without-pip /opt/venv

WORKDIR /src

# Empty packages stand in for the code: this layer, with torch in it, is made again only when pyproject.toml changes.
COPY pyproject.toml ./
RUN mkdir -p coldframe/v1 indexer/corpus indexer/evaluate indexer/report server/observe server/security server/services server/wire \
    && touch README.md LICENSE \
    && python -m pip --python /opt/venv/bin/python install ".[indexer,server,telemetry]" \
    && python -m pip --python /opt/venv/bin/python uninstall --yes coldframe

# What only people who compile or test these libraries need. Their bytecode stays: on a read-only disk Python could
# never write it, and would compile torch and transformers at every start.
RUN cd /opt/venv/lib/python3*/site-packages \
    && rm -rf torch/include torch/test torch/bin/*[Tt]est* torch/bin/protoc* \
    && find numba numpy pyarrow scipy sklearn sympy -type d -name tests -prune -exec rm -rf {} +

# The project goes to a folder of its own: a change of code makes a new layer of kilobytes, not one with torch in it.
COPY README.md LICENSE ./
COPY coldframe coldframe
COPY indexer indexer
COPY server server
RUN python -m pip --python /opt/venv/bin/python install --no-deps --prefix /opt/project .


FROM ${BASE_IMAGE}

# A fixed number, for the owner of a mounted folder and for clusters that refuse images without one.
RUN groupadd --gid 10001 coldframe \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /tmp --shell /usr/sbin/nologin coldframe \
    && install -d -o 10001 -g 10001 /store

COPY --from=builder /opt/venv /opt/venv
COPY --from=builder /opt/project /opt/venv

# Something to build an index of without a mount.
COPY examples/news /app/examples/news
WORKDIR /app

# Only /store and /tmp are ever written to, whatever the user: the rest may be read-only. Models from a hub are kept
# with the store, so that the server finds what the indexer fetched. gRPC has a line for each handshake that fails, unless
# it is told: whoever reaches the port could fill the disk.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    GRPC_VERBOSITY=ERROR \
    HOME=/tmp \
    HF_HOME=/store/.huggingface

USER 10001:10001
VOLUME /store
EXPOSE 50051

# Healthy means that the server has a generation and answers. It is asked where the environment or a configuration file
# says that it listens, and with its own certificate; what flags said it does not know.
HEALTHCHECK --interval=15s --timeout=10s --start-period=120s CMD ["python", "-m", "server", "health"]

# No shell in between: SIGTERM reaches Python.
CMD ["python", "-m", "server", "--store", "/store", "--listen", "0.0.0.0:50051"]
