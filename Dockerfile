# syntax=docker/dockerfile:1
FROM rust:1.95-slim-trixie AS build
WORKDIR /build
COPY . .
# What cargo fetched and built last time is kept between builds, outside the image.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/build/target,sharing=locked \
    cargo build --release --locked --bin sealwire \
    && strip --output-file=/sealwire target/release/sealwire \
    && mkdir /data

# The C library and the authorities that SMTP over TLS needs; no shell.
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
