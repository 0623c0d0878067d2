# syntax=docker/dockerfile:1
FROM rust:1.95-slim-trixie AS build
WORKDIR /build
COPY . .
# The cache mounts keep cargo's downloads and build results between builds, outside the image.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/build/target,sharing=locked \
    cargo build --release --locked --bin sealwire \
    && strip --output-file=/sealwire target/release/sealwire \
    && mkdir /data

# Has the C library, and the certificate authorities for TLS to other servers; has no shell.
FROM gcr.io/distroless/cc-debian13:nonroot
COPY --from=build /sealwire /usr/local/bin/sealwire
COPY --from=build --chown=65532:65532 /data /data
USER 65532:65532
WORKDIR /data
VOLUME /data
ENV SEALWIRE__SERVER__BIND=0.0.0.0:8080 \
    SEALWIRE__DATABASE__URL=sqlite:///data/sealwire.db
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=10s --start-period=60s --retries=3 \
    CMD ["/usr/local/bin/sealwire", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/sealwire"]
CMD ["serve"]
