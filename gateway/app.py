"""The two web applications: what carriers reach, and what operators reach.

Owns routers and health; the work is the desk's. The carriers' listener never serves metrics, API or
console, and the operators' listener takes no calls.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import orjson
from fastapi import Depends, FastAPI, Response
from fastapi.responses import StreamingResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from gateway import telemetry
from gateway.api.access import access_to
from gateway.api.calls import calls_router
from gateway.desk import Desk
from gateway.telnyx.routes import router as telnyx_router
from gateway.twilio.routes import router as twilio_router
from gateway.webhooks.routes import schema_router


def carrier_app(desk: Desk) -> FastAPI:
    """Listens on CALLPLEX_LISTEN: Twilio, Telnyx, health."""
    app = FastAPI(title="Callplex", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(twilio_router(desk))
    app.include_router(telnyx_router(desk))

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz(response: Response) -> dict[str, str | int]:
        """A call that comes now would be answered."""
        ready = desk.ready()
        response.status_code = 200 if ready else 503
        return {"status": "ready" if ready else "not ready", "calls": desk.active_calls}

    return app


def admin_app(desk: Desk) -> FastAPI:
    """Listens on CALLPLEX_ADMIN_LISTEN: metrics and the API."""
    app = FastAPI(title="Callplex admin", docs_url=None, redoc_url=None)
    # A page on the open web can make a browser on this machine ask us; it cannot forge the Host.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])

    app.include_router(schema_router())
    access = Depends(access_to(desk.archive))

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus exposition."""
        await desk.archive.count()
        return Response(desk.telemetry.render(), media_type=telemetry.CONTENT_TYPE)

    # Before the other routes: "live" is no call's id.
    @app.get("/api/calls/live", dependencies=[access])
    async def live() -> StreamingResponse:
        """Both sides of every call as they speak, as server-sent events."""
        return StreamingResponse(_live_events(desk), media_type="text/event-stream")

    app.include_router(calls_router(desk.archive))
    return app


async def _live_events(desk: Desk) -> AsyncIterator[bytes]:
    yield b": watching\n\n"
    async for news in desk.live.watch():
        one = news.utterance
        event = {
            "call_id": news.call_id,
            "number": one.number,
            "speaker": one.speaker,
            "text": one.text,
            "at": round(one.start, 2),
            "interrupted": one.interrupted,
            "final": one.final,
        }
        yield b"data: " + orjson.dumps(event) + b"\n\n"
