# syntax=docker/dockerfile:1
# Landfall as an image: built from this checkout, run as a user that owns nothing.
#
#     docker build -t landfall .
#     docker run -v ./landfall.toml:/etc/landfall/landfall.toml:ro landfall

FROM rust:1.88-bookworm AS build
WORKDIR /build
# What librdkafka's own build needs beside a C compiler; scripts/setup installs the same.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libssl-dev zlib1g-dev pkg-config \
    && rm -rf /var/lib/apt/lists/*
# Cargo wants to see the benches, the tests and the testbed, and builds none of them.
COPY Cargo.toml Cargo.lock README.md ./
COPY src src
COPY benches benches
COPY tests tests
COPY testbed testbed
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/build/target \
    cargo build --release --locked -p landfall && cp target/release/landfall /landfall

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libssl3 zlib1g \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin landfall
COPY --from=build /landfall /usr/local/bin/landfall
USER 10001
ENV LANDFALL_CONFIG=/etc/landfall/landfall.toml
EXPOSE 9187
# Whether the daemon answers (`landfall status` exits with 2 where it does not), and not whether its streams run: what
# restarts an unhealthy container would make a cut line worse. docker-compose.yml asks for more.
HEALTHCHECK --interval=5s --timeout=6s --start-period=30s --retries=3 CMD ["sh", "-c", "landfall status; test $? -ne 2"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["landfall"]
CMD ["run"]
