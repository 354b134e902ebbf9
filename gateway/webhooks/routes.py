"""The JSON Schemas of events over HTTP, for the operators' listener: `/api/schemas/...`."""

from __future__ import annotations

from importlib import resources

from fastapi import APIRouter, HTTPException, Response

from gateway.webhooks.events import KINDS, VERSION

SCHEMA = "application/schema+json"


def schema_name(kind: str) -> str:
    """`call.ended` -> `call.ended.v1.json`, the name of its file and the end of its URL."""
    return f"{kind}.v{VERSION}.json"


def read_schema(kind: str) -> bytes:
    """The schema of one kind of event."""
    return resources.files("gateway.webhooks").joinpath("schemas", schema_name(kind)).read_bytes()


def schema_router() -> APIRouter:
    """`GET /api/schemas` lists them, `GET /api/schemas/call.ended.v1.json` is one."""
    router = APIRouter()
    schemas = {schema_name(kind): read_schema(kind) for kind in KINDS}

    @router.get("/api/schemas")
    async def listed() -> dict[str, list[str]]:
        """The paths of all schemas."""
        return {"schemas": [f"/api/schemas/{name}" for name in schemas]}

    @router.get("/api/schemas/{name}")
    async def one(name: str) -> Response:
        """One schema."""
        if name not in schemas:
            raise HTTPException(404, f"there is no schema {name[:60]}; GET /api/schemas lists them")
        return Response(schemas[name], media_type=SCHEMA)

    return router
