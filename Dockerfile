# A static program on an empty image: nothing in it but the agent and the authorities that it trusts.
# `make image` builds both and calls this with the folder that holds them as its context.
FROM scratch
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="JASM" \
      org.opencontainers.image.description="Per-node Kubernetes agent that puts external secrets where pods ask for them by annotation" \
      org.opencontainers.image.source="https://github.com/codnod/jasm" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY jasm-agent /jasm-agent
# By number, so that the kubelet can see that it is not root.
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/jasm-agent"]
