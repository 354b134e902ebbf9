"""The schemas as the operators' listener serves them."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI

from gateway.webhooks.events import KINDS
from gateway.webhooks.routes import read_schema, schema_router

pytestmark = pytest.mark.anyio


async def test_every_schema_is_served() -> None:
    app = FastAPI()
    app.include_router(schema_router())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://admin") as client:
        listed = (await client.get("/api/schemas")).json()["schemas"]
        assert listed == [f"/api/schemas/{kind}.v1.json" for kind in KINDS]
        for path, kind in zip(listed, KINDS, strict=True):
            answer = await client.get(path)
            assert answer.headers["content-type"] == "application/schema+json"
            assert answer.content == read_schema(kind)
        assert (await client.get("/api/schemas/call.other.v1.json")).status_code == 404
        assert (await client.get("/api/schemas/..%2Fevents.py")).status_code == 404
