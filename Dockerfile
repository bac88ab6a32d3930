# The image of Wasm Wizard: the program, the libraries it is linked to, the authorities it trusts, and nothing
# else, so no shell and no package manager. docs/DEPLOYMENT.md says why it is built from `scratch`.
#
#   docker build -t wasm-wizard --build-arg VERSION=0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" .
#   docker run --rm --read-only --tmpfs /tmp -v wasm-wizard:/var/lib/wasm-wizard -p 8443:8443 wasm-wizard

ARG RUST_VERSION=1.95
ARG DEBIAN_RELEASE=bookworm

FROM rust:${RUST_VERSION}-slim-${DEBIAN_RELEASE} AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential=12.9 cmake=3.25.* ca-certificates=20* \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build

# The dependencies, in a layer that stays until one of these files changes.
COPY Cargo.toml Cargo.lock build.rs ./
COPY docker/stubs.sh docker/
RUN docker/stubs.sh . \
 && cargo build --release --locked --bin wasm-wizard \
 && cargo clean --release --package wasm-wizard \
 && rm -rf src tests benches migrations

# The program, and the tree of files that becomes the image.
COPY conf conf
COPY migrations migrations
COPY src src
COPY docker/root.sh docker/
RUN docker/stubs.sh . \
 && cargo build --release --locked --bin wasm-wizard \
 && docker/root.sh target/release/wasm-wizard /image

FROM scratch
ARG VERSION=0.0.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="wasm-wizard" \
      org.opencontainers.image.description="An HTTPS gateway that runs WebAssembly inline" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
COPY --from=build /image/ /
COPY --from=build --chown=65532:65532 /image/var/lib/wasm-wizard/ /var/lib/wasm-wizard/
COPY conf/container/wasm-wizard.yaml /etc/wasm-wizard/wasm-wizard.yaml
# Paths in the configuration are relative to this; it is all that is written to.
WORKDIR /var/lib/wasm-wizard
USER 65532:65532
EXPOSE 8080 8443 9091
# SIGTERM drains, for at most server.shutdown_grace.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["/usr/bin/wasm-wizard", "health"]
ENTRYPOINT ["/usr/bin/wasm-wizard"]
CMD ["serve", "--config", "/etc/wasm-wizard/wasm-wizard.yaml"]
