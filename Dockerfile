# A static program on an empty image: nothing in it but the agent and the authorities that it trusts.
FROM docker.io/library/rust:1.95-alpine AS build
# aws-lc is built from C; ca-certificates is what the agent trusts when it talks to AWS.
RUN apk add --no-cache build-base ca-certificates cmake perl
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
RUN mkdir -p tests/it && echo 'fn main() {}' > tests/it/main.rs \
    && cargo build --locked --release --bin jasm-agent \
    && cp target/release/jasm-agent /jasm-agent

FROM scratch
LABEL org.opencontainers.image.title="JASM" \
      org.opencontainers.image.description="Per-node Kubernetes agent that puts external secrets where pods ask for them by annotation" \
      org.opencontainers.image.source="https://github.com/codnod/jasm" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /jasm-agent /jasm-agent
# By number, so that the kubelet can see that it is not root.
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/jasm-agent"]
