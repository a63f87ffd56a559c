# The service, the `romancy` command, and workers written with the Python SDK.
FROM python:3.11-slim
WORKDIR /romancy
COPY requirements.txt ./
RUN pip install --no-cache-dir --require-hashes -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY worker_sdk/python worker_sdk/python
RUN pip install --no-cache-dir --no-deps --no-build-isolation .
WORKDIR /romancy/worker_sdk/python
ENV PYTHONUNBUFFERED=1
RUN useradd --system --no-create-home romancy
USER romancy
EXPOSE 7233
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s CMD ["romancy-service", "health"]
CMD ["romancy-service", "serve"]
