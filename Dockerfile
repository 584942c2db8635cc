# Two stages: the toolchain builds, a slim system runs. No key or certificate enters the image.
FROM rust:1.95-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
      clang-19 make libbpf-dev linux-libc-dev protobuf-compiler libprotobuf-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs ./
COPY bpf bpf
COPY src src
# The tests take dev, which compiles in a third of the time.
ARG PROFILE=release
RUN cargo build --locked --profile "$PROFILE" --bin tombolo \
 && install -D -t /out target/*/tombolo

FROM debian:bookworm-slim
COPY --from=build /out/tombolo /usr/local/bin/tombolo
ENTRYPOINT ["/usr/local/bin/tombolo"]
CMD ["agent"]
