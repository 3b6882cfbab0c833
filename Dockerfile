# Images of llava-serving; deploy/README.md tells how to use them.
#
#   docker build --target gateway -t llava-gateway .      also: vision, llm, prometheus, demo
#   docker build --target llm --build-arg PRESET=cuda -t llava-llm-cuda .      for NVIDIA GPUs; also: vision
#
# One build stage makes all programs; each image holds one program and only the libraries it loads.
# All run as user 10001, need no writable root file system and end on SIGTERM.
ARG BASE=debian:bookworm-slim

# ---- build: the same script sets up a developer's machine
FROM ${BASE} AS build
ENV LLAVA_CACHE=/opt/llava-cache
WORKDIR /src
COPY deploy/setup.sh deploy/requirements.txt deploy/
# The preset of CMakePresets.json: release or cuda.
ARG PRESET=release
RUN if [ $PRESET = cuda ]; then deploy/setup.sh --with-cuda; else deploy/setup.sh; fi
COPY . .
ARG JOBS=2
RUN . $LLAVA_CACHE/env.sh \
 && cmake --preset $PRESET -DLLAVA_TESTS=OFF \
 && ninja -C build/$PRESET -j$JOBS llava-gateway llava-vision llava-llm llava-chat llava-probe
# The commit that the programs name, in a layer of its own: another one compiles one file.
ARG REVISION=unknown
RUN . $LLAVA_CACHE/env.sh \
 && cmake --preset $PRESET "-DLLAVA_COMMIT=$REVISION" \
 && ninja -C build/$PRESET -j$JOBS llava-gateway llava-vision llava-llm llava-chat llava-probe
RUN cd build/$PRESET/bin \
 && for name in gateway vision llm; do \
      /src/deploy/collect_runtime.sh /out/$name llava-$name llava-probe || exit 1; \
    done \
 && /src/deploy/collect_runtime.sh /out/demo llava-gateway llava-vision llava-llm llava-chat llava-probe

# ---- what all images share
FROM ${BASE} AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="llava-serving" \
      org.opencontainers.image.description="Serves LLaVA-family models: pictures in, streamed answers out" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY deploy/install_runtime.sh /opt/llava/deploy/
RUN mkdir -p /var/lib/llava && chown 10001:10001 /var/lib/llava
# Without the last, NVIDIA's container toolkit leaves libcuda out.
ENV PATH=/opt/llava/bin:$PATH HOME=/tmp NVIDIA_DRIVER_CAPABILITIES=compute,utility

# ---- gateway: sessions and streams; no LibTorch
FROM runtime AS gateway
COPY --from=build /out/gateway/packages /opt/llava/
COPY --from=build /out/gateway/lib /opt/llava/lib
RUN /opt/llava/deploy/install_runtime.sh
COPY --from=build /out/gateway/bin /opt/llava/bin
ENV LLAVA_GATEWAY_HOST=0.0.0.0 LLAVA_GATEWAY_LOG_FORMAT=json \
    LLAVA_GATEWAY_DATA_DIR=/var/lib/llava
USER 10001:10001
VOLUME /var/lib/llava
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
  CMD ["llava-probe", "8002"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["llava-gateway"]

# ---- vision: mount a model repository at /models
FROM runtime AS vision
COPY --from=build /out/vision/packages /opt/llava/
COPY --from=build /out/vision/lib /opt/llava/lib
RUN /opt/llava/deploy/install_runtime.sh
COPY --from=build /out/vision/bin /opt/llava/bin
ENV LLAVA_VISION_HOST=0.0.0.0 LLAVA_VISION_LOG_FORMAT=json
USER 10001:10001
EXPOSE 8011 8012
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
  CMD ["llava-probe", "8012"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["llava-vision"]

# ---- llm: mount a model repository at /models
FROM runtime AS llm
COPY --from=build /out/llm/packages /opt/llava/
COPY --from=build /out/llm/lib /opt/llava/lib
RUN /opt/llava/deploy/install_runtime.sh
COPY --from=build /out/llm/bin /opt/llava/bin
ENV LLAVA_LLM_HOST=0.0.0.0 LLAVA_LLM_LOG_FORMAT=json
USER 10001:10001
EXPOSE 8021 8022
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
  CMD ["llava-probe", "8022"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["llava-llm"]

# ---- prometheus: Debian's, with our scrape settings and rules
FROM ${BASE} AS prometheus
RUN apt-get update -q \
 && apt-get install -q -y --no-install-recommends prometheus \
 && rm -rf /var/lib/apt/lists/* \
 && mkdir -p /var/lib/prometheus && chown 10001:10001 /var/lib/prometheus
COPY deploy/monitoring/prometheus.yml deploy/monitoring/rules.yml /etc/llava/
USER 10001:10001
VOLUME /var/lib/prometheus
EXPOSE 9090
STOPSIGNAL SIGTERM
ENTRYPOINT ["prometheus", "--config.file=/etc/llava/prometheus.yml", "--storage.tsdb.path=/var/lib/prometheus"]

# ---- demo: all services, the chat and the default model in one container
FROM runtime AS demo
COPY --from=build /out/demo/packages /opt/llava/
COPY --from=build /out/demo/lib /opt/llava/lib
RUN /opt/llava/deploy/install_runtime.sh
COPY --from=build /out/demo/bin /opt/llava/bin
COPY deploy/services.sh deploy/demo.sh /opt/llava/deploy/
COPY deploy/models /opt/llava/models
COPY deploy/scenes /opt/llava/scenes
# The notices of what the pictures are drawn with.
COPY deploy/scenes-data/LICENSE.Apache-2.0 deploy/scenes-data/LICENSE.noto-emoji /opt/llava/scenes/
USER 10001:10001
# Nothing is exposed: the services listen on the container's own loopback (--network host: the machine's).
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
  CMD ["llava-probe", "8002"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/llava/deploy/demo.sh"]
