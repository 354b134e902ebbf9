"""Events for the operator's endpoint: stored first, then posted until it says yes.

Owns the outbox (one file a delivery under DATA_DIR/outbox/), the signature and the retries. Delivery is
at least once: an event's `webhook-id` never changes, so that the endpoint can drop a second copy.
Headers and signature as in https://www.standardwebhooks.com. Knows nothing of calls.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import heapq
import logging
import random
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import orjson
from standardwebhooks import Webhook

from gateway.records.files import write_whole

log = logging.getLogger(__name__)

TIMEOUT = 5.0
"""Seconds an endpoint has for a whole request."""
GIVE_UP_AFTER = 72 * 3600.0
"""Seconds after an event's creation beyond which no attempt follows."""
FIRST_DELAY = 2.0
LONGEST_DELAY = 3600.0
AT_ONCE = 8
"""Deliveries under way at the same time."""
RESTART_AGAIN_AFTER = 60.0
"""Seconds after a start by which every stored delivery is tried, unless the endpoint asked for more."""

GONE = 410


class WebhookInvalid(Exception):
    """The webhook settings cannot be used; the message says how to mend them and never holds the secret."""


class OutboxError(Exception):
    """An event cannot be stored, so it will not be delivered; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event on its way, as its file holds it. Times are seconds since 1970."""

    webhook_id: str
    created: float
    body: str
    """Exactly what is posted: a retry sends the same bytes."""
    attempts: int = 0
    due: float = 0.0
    not_before: float = 0.0
    """Until when the endpoint asked to be left alone."""
    reason: str = ""
    """What came of the last attempt."""


NextDelay = Callable[[int, float, float], float]


def next_delay(attempt: int, chance: float, retry_after: float = 0.0) -> float:
    """Seconds to wait after failed attempt number `attempt` (from 1): doubling from 1-2 s to 0.5-1 h.

    `chance` in [0, 1) spreads deliveries that failed together. The endpoint's own wish, `retry_after`,
    is obeyed where it is longer.
    """
    backoff = min(FIRST_DELAY * 2.0 ** min(attempt - 1, 20), LONGEST_DELAY)
    return max(backoff * (0.5 + 0.5 * chance), retry_after)


def retry_after_seconds(header: str, now: float) -> float:
    """Read a Retry-After header, seconds or a date (RFC 9110 section 10.2.3); 0 if it is neither."""
    value = header.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        moment = parsedate_to_datetime(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, moment.timestamp() - now)
    except (ValueError, OverflowError):
        return 0.0


def check_secret(secret: str) -> None:
    """Raises WebhookInvalid unless `secret` is `whsec_` and the base64 of 24 to 64 random bytes."""
    fix = "make one with: python3 -c \"import base64,os;print('whsec_'+base64.b64encode(os.urandom(32)).decode())\""
    if not secret.startswith("whsec_"):
        raise WebhookInvalid(f"CALLPLEX_WEBHOOK_SECRET must start with whsec_; {fix}")
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        raise WebhookInvalid(f"CALLPLEX_WEBHOOK_SECRET is not base64 after whsec_; {fix}") from None
    if not 24 <= len(key) <= 64:
        raise WebhookInvalid(f"CALLPLEX_WEBHOOK_SECRET must hold 24 to 64 bytes, not {len(key)}; {fix}")


class Outbox:
    """Stores events and delivers them to `url`; with an empty `url` it does nothing at all.

    `put` and `run` share one event loop. `clock`, `chance` and `delay` are there for tests.
    Raises WebhookInvalid for a secret or URL that cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        secret: str,
        client: httpx.AsyncClient,
        *,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        delay: NextDelay = next_delay,
    ) -> None:
        self._folder = folder
        self._url = url
        self._client = client
        self._clock = clock
        self._chance = chance
        self._delay = delay
        self._due: list[tuple[float, str]] = []
        self._known: set[str] = set()
        self._changed = asyncio.Event()
        self.delivered = 0
        self.dead = 0
        if url:
            check_url(url)
            check_secret(secret)
            self._signer = Webhook(secret)
            with suppress(OSError):
                for half_written in folder.glob("msg_*.tmp"):
                    half_written.unlink()

    @property
    def pending(self) -> int:
        """Events stored and not yet delivered or given up, as far as `run` has read them."""
        return len(self._known)

    async def put(self, event_type: str, data: Mapping[str, Any]) -> str:
        """Store an event; it is on disk when this returns, and delivered by `run`.

        Returns its webhook-id, "" without an endpoint. Raises OutboxError if the disk refuses.
        """
        if not self._url:
            return ""
        now = self._clock()
        stamp = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        body = orjson.dumps({"type": event_type, "timestamp": stamp, "data": dict(data)}).decode()
        delivery = Delivery(f"msg_{uuid.uuid4().hex}", now, body, due=now)
        # Known from here on, so that a run that starts now and finds the file does not take it for an old one.
        self._known.add(delivery.webhook_id)
        try:
            await asyncio.to_thread(self._store, delivery)
        except OSError as error:
            self._known.discard(delivery.webhook_id)
            where = f"{event_type} cannot be stored in {self._folder}: {error.strerror}"
            raise OutboxError(f"{where}; free space or make it writable") from error
        self._schedule(delivery.webhook_id, now)
        return delivery.webhook_id

    async def run(self) -> None:
        """Deliver what is stored, from this run or an earlier one, until cancelled."""
        if not self._url:
            return
        try:
            stored = await asyncio.to_thread(self._load)
        except OSError as error:
            log.error("webhooks of earlier runs in %s cannot be read: %s", self._folder, error.strerror)
            stored = []
        for delivery in stored:
            if delivery.webhook_id not in self._known:
                self._schedule(delivery.webhook_id, delivery.due)
        places = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            while True:
                webhook_id = await self._next_due()
                await places.acquire()
                tasks.create_task(self._attempt(webhook_id)).add_done_callback(lambda _: places.release())

    def _schedule(self, webhook_id: str, due: float) -> None:
        self._known.add(webhook_id)
        heapq.heappush(self._due, (due, webhook_id))
        self._changed.set()

    async def _next_due(self) -> str:
        """Wait until a delivery is due.

        A bare wait that a timer ends: in Python 3.11 asyncio.wait_for loses a cancellation that comes
        together with its result, and then nothing could stop the deliveries.
        """
        while True:
            self._changed.clear()
            wait = self._due[0][0] - self._clock() if self._due else LONGEST_DELAY
            if wait <= 0:
                return heapq.heappop(self._due)[1]
            timer = asyncio.get_running_loop().call_later(min(wait, LONGEST_DELAY), self._changed.set)
            try:
                await self._changed.wait()
            finally:
                timer.cancel()

    async def _attempt(self, webhook_id: str) -> None:
        """Try one delivery once; then it is done, dead or due again. Never raises for peer or disk.

        What `_post` can raise at an answer is settled there, so that it counts as a failed attempt.
        """
        try:
            delivery = await asyncio.to_thread(self._read, webhook_id)
            status, reason, retry_after = await self._post(delivery)
            if 200 <= status < 300:
                self.delivered += 1
                await asyncio.to_thread(self._path(webhook_id).unlink)
                self._known.discard(webhook_id)
            else:
                await self._failed(delivery, status, reason, retry_after)
        except (OSError, ValueError) as error:
            # What its file says is tried again at the next start; here there is nothing left to go by.
            log.error("webhook %s: its file in %s: %s", webhook_id, self._folder, error)
            self._known.discard(webhook_id)

    async def _failed(self, delivery: Delivery, status: int, reason: str, retry_after: float) -> None:
        webhook_id, now = delivery.webhook_id, self._clock()
        deadline = max(delivery.created + GIVE_UP_AFTER, now)
        attempts = delivery.attempts + 1
        due = min(now + self._delay(attempts, self._chance(), retry_after), deadline)
        asked = min(now + retry_after, deadline)
        failed = replace(delivery, attempts=attempts, due=due, not_before=asked, reason=reason)
        if status == GONE or now >= deadline:
            await asyncio.to_thread(self._bury, failed)
            self._known.discard(webhook_id)
            self.dead += 1
            return
        log.warning("webhook %s: attempt %d: %s; next in %.0f s", webhook_id, attempts, reason, due - now)
        try:
            await asyncio.to_thread(self._store, failed)
        except OSError as error:
            log.error("webhook %s: attempt %d is not counted: %s", webhook_id, attempts, error)
        self._schedule(webhook_id, due)

    async def _post(self, delivery: Delivery) -> tuple[int, str, float]:
        """Post it once: (HTTP status or 0, what went wrong, seconds the endpoint asks us to wait)."""
        now = self._clock()
        headers = {
            "content-type": "application/json",
            "user-agent": "Callplex",
            "webhook-id": delivery.webhook_id,
            "webhook-timestamp": str(int(now)),
            "webhook-signature": self._signer.sign(
                delivery.webhook_id, datetime.fromtimestamp(int(now), UTC), delivery.body
            ),
        }
        request = self._client.stream(
            "POST", self._url, content=delivery.body.encode(), headers=headers, timeout=TIMEOUT, follow_redirects=False
        )
        try:
            async with asyncio.timeout(TIMEOUT), request as response:
                status = response.status_code
                reason = f"the endpoint answered {status}"
                if response.is_redirect:
                    reason += "; redirects are not followed, set CALLPLEX_WEBHOOK_URL to the final address"
                return status, reason, retry_after_seconds(response.headers.get("retry-after", ""), now)
        except (TimeoutError, httpx.TimeoutException):
            return 0, f"the endpoint did not answer within {TIMEOUT:g} s", 0.0
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            return 0, f"the endpoint cannot be reached ({type(error).__name__})", 0.0
        except (httpx.InvalidURL, ValueError, OverflowError) as error:
            return 0, f"the endpoint's answer cannot be read ({type(error).__name__})", 0.0

    # Files; all of this runs in threads.

    def _path(self, webhook_id: str) -> Path:
        return self._folder / f"{webhook_id}.json"

    def _store(self, delivery: Delivery) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._path(delivery.webhook_id), orjson.dumps(asdict(delivery)))

    def _read(self, webhook_id: str) -> Delivery:
        return _parse(self._path(webhook_id).read_bytes())

    def _bury(self, delivery: Delivery) -> None:
        """Keep it for a person to look at, with the reason, and stop trying."""
        graves = self._folder / "dead"
        graves.mkdir(parents=True, exist_ok=True)
        write_whole(graves / f"{delivery.webhook_id}.json", orjson.dumps(asdict(delivery)))
        self._path(delivery.webhook_id).unlink()
        log.error("webhook %s: given up: %s; kept in %s", delivery.webhook_id, delivery.reason, graves)

    def _load(self) -> list[Delivery]:
        """What earlier runs left. A file that is no delivery is set aside, with a line in the log."""
        found: list[Delivery] = []
        self._folder.mkdir(parents=True, exist_ok=True)
        latest = self._clock() + RESTART_AGAIN_AFTER
        for path in sorted(self._folder.glob("msg_*.json")):
            try:
                delivery = _parse(path.read_bytes())
            except ValueError as error:
                (self._folder / "dead").mkdir(exist_ok=True)
                path.replace(self._folder / "dead" / path.name)
                log.error("webhook file %s is damaged (%s); moved to dead/", path.name, error)
                continue
            found.append(replace(delivery, due=max(delivery.not_before, min(delivery.due, latest))))
        return found


def _parse(data: bytes) -> Delivery:
    """Raises ValueError if a file holds no delivery."""
    fields = orjson.loads(data)
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    try:
        delivery = Delivery(**fields)
    except TypeError as error:
        raise ValueError("not the fields of a delivery") from error
    texts = (delivery.webhook_id, delivery.body, delivery.reason)
    numbers = (delivery.created, delivery.attempts, delivery.due, delivery.not_before)
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(one, int | float) for one in numbers):
        raise ValueError("a field has the wrong type")
    return delivery


def check_url(url: str) -> None:
    """Raises WebhookInvalid unless `url` is an http(s) URL with a host."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise WebhookInvalid(f"CALLPLEX_WEBHOOK_URL is not a URL: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise WebhookInvalid("CALLPLEX_WEBHOOK_URL must be like https://example.com/hooks")
