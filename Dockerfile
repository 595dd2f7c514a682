# satisfice in a container. `docker build -t satisfice .` makes the server; `--target vllm` makes vLLM with the plugin,
# which compose.yaml starts. docs/docker.md says more.
FROM vllm/vllm-openai:v0.32.0 AS vllm
COPY pyproject.toml README.md LICENSE /src/
COPY satisfice /src/satisfice
RUN python3 -m pip install --no-cache-dir /src && rm -r /src

FROM python:3.12-slim AS serve
# The build of torch for CPUs; for GPUs: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY pyproject.toml README.md LICENSE constraints.txt /src/
COPY satisfice /src/satisfice
RUN python -m pip install --no-cache-dir --index-url "$TORCH_INDEX" torch==2.13.0 \
    && python -m pip install --no-cache-dir --constraint /src/constraints.txt "/src[serve]" \
    && rm -r /src \
    && useradd --create-home --uid 1000 satisfice
USER 1000
ENV HF_HOME=/home/satisfice/.cache/huggingface OMP_NUM_THREADS=1
EXPOSE 8000
HEALTHCHECK --interval=10s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
# Everything after the image's name replaces CMD: docker run -p 8000:8000 satisfice MODEL --method deer --host 0.0.0.0
ENTRYPOINT ["satisfice", "serve"]
CMD ["lab", "--host", "0.0.0.0"]
