# One image for every role: `everfold-nameserver`, `everfold-datanode`, or (to try it) `everfold up`,
# whose datanodes listen inside the container only: mount there too, or use --network host.
# A mount inside a container needs --device /dev/fuse --cap-add SYS_ADMIN. compose.yaml runs a cluster.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY setup.py pyproject.toml constraints.txt README.md ./
COPY everfold everfold
COPY mount mount
COPY nameserver nameserver
COPY datanode datanode
COPY tools tools
RUN python -m venv /opt/everfold \
 && /opt/everfold/bin/pip install --no-cache-dir -c constraints.txt .

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
