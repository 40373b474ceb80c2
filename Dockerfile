# The agent, and with --target demo a training job to watch. How they are run: docker-compose.yml,
# docs/deploy.md.
#
#   docker build -t dlmon .
#   docker build -t dlmon-demo --target demo .

ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY dlmon dlmon
RUN python3 -m venv /opt/dlmon \
    && /opt/dlmon/bin/pip install --no-cache-dir .

FROM build AS build-demo
# torch from an index with CPU builds: the usual ones bring gigabytes of CUDA.
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN /opt/dlmon/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} "${TORCH}" \
    && /opt/dlmon/bin/pip install --no-cache-dir '.[demo]' \
    && mkdir /photographs \
    && /opt/dlmon/bin/python -c "from pathlib import Path; from dlmon.demo import photos; \
        list(photos.write(Path('/photographs'), 100))"

# No shell script, no compiler, no source: the interpreter and what pip put into /opt/dlmon.
FROM ${PYTHON} AS base
RUN useradd --system --uid 10356 --create-home dlmon
ENV PATH=/opt/dlmon/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10356

FROM base AS demo
COPY --from=build-demo /opt/dlmon /opt/dlmon
COPY --from=build-demo --chown=10356 /photographs /photographs
ENTRYPOINT ["python", "-m", "dlmon.demo.train", "--data", "/photographs"]

FROM base AS agent
COPY --from=build /opt/dlmon /opt/dlmon
EXPOSE 10356
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:10356/-/ready')"]
ENTRYPOINT ["dlmon"]
CMD ["agent", "--web.listen-address", ":10356"]
