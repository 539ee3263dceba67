# A node as an image of one file: the binary, linked statically, and nothing beside it. No
# shell, no package, no user database; nothing is written anywhere.
#
# The binary is linked with glibc, not musl, whose allocator makes a PUT a third more expensive
# (docs/containers.md). Since version 2.34 glibc looks names up in /etc/hosts and DNS by itself,
# without the shared libraries that static binaries needed for it before. Public authorities of
# TLS are compiled in, and all times are UTC: there is neither a file of certificates nor one of
# time zones.

FROM rust:1.95-slim AS build
WORKDIR /build
ENV RUSTFLAGS="-C target-feature=+crt-static"

# The dependencies, from the manifests alone: a change of sources does not build them again.
# Tables of tests and benches name files that are not here, so they are cut out.
COPY Cargo.toml Cargo.lock ./
COPY perf/Cargo.toml perf/Cargo.toml
RUN sed -i '/^\[\[/,/^$/d' Cargo.toml \
    && mkdir -p src perf/src \
    && echo 'fn main() {}' > src/main.rs \
    && touch src/lib.rs perf/src/lib.rs \
    && rustc --print host-tuple > /target \
    && cargo build --release --locked --bin hypercache --target "$(cat /target)"

# With their times as they are, the sources might be older than what was built just now.
COPY src src
RUN find src -name '*.rs' -exec touch {} + \
    && cargo build --release --locked --bin hypercache --target "$(cat /target)" \
    && mv "target/$(cat /target)/release/hypercache" /hypercache \
    && /hypercache --version

FROM scratch
ARG SOURCE
ARG REVISION
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="hypercache" \
      org.opencontainers.image.description="A distributed in-memory cache node: thread per core, HTTP/1.1, replicated" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /hypercache /hypercache
USER 65532:65532
# Clients, management, peers.
EXPOSE 8080 8081 7946
STOPSIGNAL SIGTERM
ENTRYPOINT ["/hypercache"]
