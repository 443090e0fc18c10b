# The digest names one image, whatever the tag says later. docs/CONTRIBUTING.md says how to renew it.
FROM python:3.13-slim-bookworm@sha256:67a1e1f215ccda113cfc024e8639049257e88f273898f595b61476d128d387e8

ENV PYTHONUNBUFFERED=1
WORKDIR /app

COPY requirements.txt ./
RUN pip install --no-cache-dir --require-hashes -r requirements.txt

COPY *.py schema.sql ./
COPY access access/
COPY chat chat/
COPY documents documents/
COPY drafting drafting/
COPY runs runs/
COPY storage storage/
COPY telemetry telemetry/
COPY threads threads/
COPY web web/
RUN python -m compileall -q .

USER 10001:10001
ENV PYTHONDONTWRITEBYTECODE=1 HOST=0.0.0.0 PORT=8005
EXPOSE 8005
STOPSIGNAL SIGTERM

HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=2); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]

# DATABASE_URL must be set: the image does not carry the embedded PostgreSQL.
CMD ["python", "asgi_app.py"]
