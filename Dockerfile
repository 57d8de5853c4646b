# Two images from one file:
#   docker build -t noded .                            a training node (torch inside)
#   docker build -t noded-relay --target relay .       a bootstrap or relay node: no torch, a fraction of the size
#
# PyPI's torch for Linux carries CUDA, several GB. For machines without a GPU take that one package from an index of CPU
# builds:   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu ...
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# --- what every node needs; dependencies before code, so that a change of the code builds in seconds ---
FROM ${PYTHON_IMAGE} AS relay-packages
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_CONSTRAINT=/src/constraints.txt PIP_BUILD_CONSTRAINT=/src/constraints.txt
WORKDIR /src
COPY pyproject.toml constraints.txt packaging/requirements.py ./
RUN python3 -m venv /opt/noded \
 && python3 requirements.py >requirements.txt \
 && /opt/noded/bin/pip install -r requirements.txt

FROM relay-packages AS train-packages
ARG TORCH_INDEX=""
RUN if [ -n "$TORCH_INDEX" ]; then /opt/noded/bin/pip install --no-deps --index-url "$TORCH_INDEX" torch; fi \
 && python3 requirements.py train >requirements.txt \
 && /opt/noded/bin/pip install -r requirements.txt

# --- the code, built once ---
FROM relay-packages AS wheel
COPY README.md LICENSE ./
COPY crdt crdt
COPY transport transport
COPY dht dht
COPY gossip gossip
COPY node node
RUN /opt/noded/bin/pip wheel --no-deps --wheel-dir /wheel .

FROM relay-packages AS relay-environment
COPY --from=wheel /wheel /wheel
RUN /opt/noded/bin/pip install --no-deps /wheel/*.whl

FROM train-packages AS train-environment
COPY --from=wheel /wheel /wheel
RUN /opt/noded/bin/pip install --no-deps /wheel/*.whl

# --- what runs: an ordinary user, the environment read-only, all state in one directory ---
FROM ${PYTHON_IMAGE} AS runtime
RUN useradd --system --uid 7447 --home-dir /var/lib/noded --shell /usr/sbin/nologin noded \
 && install -d -m 0700 -o noded -g noded /var/lib/noded /var/lib/noded-swarm
COPY packaging/docker-entrypoint.sh /usr/local/bin/noded-entrypoint
ENV PATH=/opt/noded/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    NODED_NODE_DATA_DIR=/var/lib/noded
WORKDIR /var/lib/noded
USER noded
VOLUME /var/lib/noded
EXPOSE 7447
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=15s --start-period=60s --retries=6 CMD ["noded", "status", "--check"]
ENTRYPOINT ["noded-entrypoint"]
CMD ["noded", "run"]

FROM runtime AS relay
COPY --from=relay-environment /opt/noded /opt/noded

# The last stage is what a plain `docker build .` makes.
FROM runtime AS train
COPY --from=train-environment /opt/noded /opt/noded
