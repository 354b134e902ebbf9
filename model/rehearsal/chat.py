"""Replies from an OpenAI-compatible chat endpoint, streamed and cut into sentences as they come.

Owns the request, the event stream and its deadlines. Knows no script: what is said when the endpoint
fails is the dialogue's affair.
"""

from __future__ import annotations

import asyncio
import json
import queue
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from model.rehearsal.pieces import Wanted, always
from model.rehearsal.speech_text import sentences

_LOOK_SECONDS = 0.05
"""Between two looks at whether a reply is still wanted, while nothing comes."""


class ChatFailed(Exception):
    """The endpoint gave no usable reply; the message says why, for the log."""


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """Where the endpoint is, and how long a caller may wait for it. Times in seconds."""

    url: str
    """Base (`https://host/v1`) or the full address that ends in /chat/completions."""
    model: str = ""
    key: str = ""
    first_word: float = 4.0
    """To the first word of the reply; a caller hears silence until then."""
    stall: float = 4.0
    """Between two pieces of the reply."""
    total: float = 30.0
    longest: int = 2000
    """Characters of a reply; what is longer is cut after a sentence."""


@dataclass(frozen=True, slots=True)
class Message:
    role: Literal["system", "user", "assistant"]
    content: str


class Chat:
    """One endpoint, for all calls; safe to use from several threads at once.

    Requests run on an event loop of their own, so that one can be ended at any moment: a thread that waits in
    a socket cannot be called off.
    """

    def __init__(self, settings: ChatSettings) -> None:
        self._settings = settings
        url = settings.url.rstrip("/")
        self._url = url if url.endswith("/chat/completions") else url + "/chat/completions"
        self._client = httpx.AsyncClient(timeout=None)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rehearsal-chat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End what is under way; replies that are being read fail."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end_requests(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def stream(self, messages: Sequence[Message], wanted: Wanted = always) -> Iterator[str]:
        """The reply, sentence by sentence, without markup. Raises ChatFailed, maybe after some of it.

        When `wanted` no longer holds, or the iterator is closed, the request ends and the connection with it.
        """
        said = 0
        text = ""
        for piece in _whole_characters(self._pieces(messages, wanted)):
            text += piece
            *whole, text = sentences(text) or [""]
            if text and piece[-1:].isspace():
                text += " "
            for sentence in whole:
                said += len(sentence)
                if bare := plain(sentence):
                    yield bare
                if said > self._settings.longest:
                    return
        if not wanted():
            return
        if bare := plain(text):
            yield bare
            said += 1
        if not said:
            raise ChatFailed("the chat endpoint's reply is empty")

    def _pieces(self, messages: Sequence[Message], wanted: Wanted) -> Iterator[str]:
        """What the endpoint sends, as it comes; less than all of it if it is no longer wanted."""
        arrived: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        request = asyncio.run_coroutine_threadsafe(self._request(messages, arrived.put), self._loop)
        request.add_done_callback(lambda _: arrived.put(None))
        try:
            while wanted():
                try:
                    piece = arrived.get(timeout=_LOOK_SECONDS)
                except queue.Empty:
                    continue
                if piece is not None:
                    yield piece
                elif request.cancelled():
                    raise ChatFailed("the chat endpoint is not asked any more")
                else:
                    return request.result()
        finally:
            request.cancel()

    async def _request(self, messages: Sequence[Message], take: Callable[[str], None]) -> None:
        """One request; `take` gets each piece of the reply. Raises ChatFailed."""
        settings = self._settings
        body: dict[str, Any] = {"stream": True, "messages": [{"role": m.role, "content": m.content} for m in messages]}
        if settings.model:
            body["model"] = settings.model
        headers = {"Accept": "text/event-stream"}
        if settings.key:
            headers["Authorization"] = f"Bearer {settings.key}"
        now = asyncio.get_running_loop().time
        end = now() + settings.total
        try:
            async with (
                asyncio.timeout(settings.first_word) as deadline,
                self._client.stream("POST", self._url, json=body, headers=headers) as response,
            ):
                if response.status_code != 200:
                    raise ChatFailed(f"the chat endpoint answered {response.status_code}")
                async for piece in _contents(response, settings.longest * 200):
                    take(piece)
                    deadline.reschedule(min(end, now() + settings.stall))
        except TimeoutError:
            raise ChatFailed("the chat endpoint is too slow") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ChatFailed(f"the chat endpoint cannot be used: {error or type(error).__name__}") from None

    async def _end_requests(self) -> None:
        requests = asyncio.all_tasks() - {asyncio.current_task()}
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
        await self._client.aclose()


async def _contents(response: httpx.Response, limit: int) -> AsyncIterator[str]:
    """The pieces of text in a response, streamed or not. Raises ChatFailed if it is no completion."""
    if "application/json" in response.headers.get("content-type", ""):
        yield _content((await response.aread()).decode(errors="replace"), "message")
        return
    async for line in _lines(response, limit):
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        if line.startswith("data:") and (piece := _content(data, "delta")):
            yield piece


async def _lines(response: httpx.Response, limit: int) -> AsyncIterator[str]:
    """The lines of an event stream. Raises ChatFailed rather than hold more than `limit` characters."""
    rest = ""
    total = 0
    async for piece in response.aiter_text():
        total += len(piece)
        if total > limit:
            raise ChatFailed("the chat endpoint sends too much")
        *whole, rest = re.split(r"\r\n|\n|\r", rest + piece)
        for line in whole:
            yield line
    yield rest


def _whole_characters(pieces: Iterator[str]) -> Iterator[str]:
    """Text cut anywhere -> the same without half characters.

    An endpoint that escapes in JSON may put the two UTF-16 halves of an emoji into two events; a half that
    stays alone cannot be encoded, so it is left out.
    """
    half = ""
    for piece in pieces:
        text, half = half + piece, ""
        if "\ud800" <= text[-1:] <= "\udbff":
            text, half = text[:-1], text[-1]
        if text:
            yield text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")


def _content(data: str, part: Literal["delta", "message"]) -> str:
    """The text of one event, "" if it carries none. Raises ChatFailed if it is no completion."""
    try:
        event = json.loads(data)
        choices = event["choices"]
        content = choices[0][part].get("content") if choices else ""
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ChatFailed("the chat endpoint sent something that is not a chat completion") from error
    if content is not None and not isinstance(content, str):
        raise ChatFailed("the chat endpoint sent something that is not a chat completion")
    return content or ""


def plain(text: str) -> str:
    """Text without Markdown and pictures, which a voice would read out or stumble over."""
    text = re.sub(r"!?\[([^\]]+)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^\s*(?:[-*•]|\d+[.)]|#+|>)\s+", "", text)
    text = re.sub(r"[*_`#~|]+", "", text)
    text = re.sub("[\U0001f000-\U0001faff\u2600-\u27bf\ufe0f\u200d]", "", text)
    return re.sub(r"\s+", " ", text).strip()
