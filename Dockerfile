# One image for every role: `everfold-nameserver`, `everfold-datanode`, or (to try it) `everfold up`,
# whose datanodes listen inside the container only: mount there too, or use --network host.
# A mount inside a container needs --device /dev/fuse --cap-add SYS_ADMIN. compose.yaml runs a cluster.
FROM python:3.11-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev
WORKDIR /src
COPY setup.py pyproject.toml constraints.txt README.md ./
COPY everfold everfold
COPY mount mount
COPY nameserver nameserver
COPY datanode datanode
COPY tools tools
RUN python -m venv /opt/everfold \
 && /opt/everfold/bin/pip install --no-cache-dir -c constraints.txt .
# Compiled twins of what a mount spends its time in (docs/adr/0009); the compiler stays behind.
RUN pip install --no-cache-dir -c constraints.txt --target /opt/compiler mypy setuptools \
 && PYTHONPATH=/opt/compiler /opt/everfold/bin/python -m tools.compile \
 && ls -d /opt/everfold/lib/python3.11/site-packages/everfold.native/*

FROM python:3.11-slim-bookworm
RUN apt-get update \
 && apt-get install -y --no-install-recommends fuse3 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --home-dir /var/lib/everfold --create-home everfold
COPY --from=build /opt/everfold /opt/everfold
ENV PATH=/opt/everfold/bin:$PATH PYTHONUNBUFFERED=1
USER everfold
VOLUME /var/lib/everfold
EXPOSE 5000
STOPSIGNAL SIGTERM
CMD ["everfold", "up", "--data", "/var/lib/everfold", "--host", "0.0.0.0", "--port", "5000"]
