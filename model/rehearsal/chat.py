"""Replies from an OpenAI-compatible chat endpoint, streamed and cut into sentences as they come.

Owns the request, the event stream and its deadlines. Knows no script: what is said when the endpoint
fails is the dialogue's affair.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from model.rehearsal.speech_text import sentences


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
    """One endpoint, for all calls; safe to use from several threads at once."""

    def __init__(self, settings: ChatSettings, client: httpx.Client | None = None) -> None:
        self._settings = settings
        url = settings.url.rstrip("/")
        self._url = url if url.endswith("/chat/completions") else url + "/chat/completions"
        self._client = client or httpx.Client()

    def close(self) -> None:
        self._client.close()

    def stream(self, messages: Sequence[Message]) -> Iterator[str]:
        """The reply, sentence by sentence, without markup. Raises ChatFailed, maybe after some of it.

        Closing the iterator ends the request, at the latest when `stall` is over.
        """
        said = 0
        text = ""
        for piece in self._pieces(messages):
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
        if bare := plain(text):
            yield bare
            said += 1
        if not said:
            raise ChatFailed("the chat endpoint's reply is empty")

    def _pieces(self, messages: Sequence[Message]) -> Iterator[str]:
        settings = self._settings
        body: dict[str, Any] = {"stream": True, "messages": [{"role": m.role, "content": m.content} for m in messages]}
        if settings.model:
            body["model"] = settings.model
        headers = {"Accept": "text/event-stream"}
        if settings.key:
            headers["Authorization"] = f"Bearer {settings.key}"
        timeout = httpx.Timeout(
            settings.stall, connect=settings.first_word, read=max(settings.first_word, settings.stall)
        )
        start = time.monotonic()
        try:
            with self._client.stream("POST", self._url, json=body, headers=headers, timeout=timeout) as response:
                if response.status_code != 200:
                    raise ChatFailed(f"the chat endpoint answered {response.status_code}")
                yield from self._read(response, start)
        except httpx.TimeoutException:
            raise ChatFailed("the chat endpoint is too slow") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ChatFailed(f"the chat endpoint cannot be used: {error or type(error).__name__}") from None

    def _read(self, response: httpx.Response, start: float) -> Iterator[str]:
        if "application/json" in response.headers.get("content-type", ""):
            yield _content(response.read().decode(errors="replace"), "message")
            return
        settings = self._settings
        last = start
        begun = False
        for line in _lines(response, settings.longest * 200):
            now = time.monotonic()
            if now - start > settings.total or now - last > (settings.stall if begun else settings.first_word):
                raise ChatFailed("the chat endpoint is too slow")
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                return
            if not line.startswith("data:"):
                continue
            if piece := _content(data, "delta"):
                begun, last = True, now
                yield piece
                last = time.monotonic()


def _lines(response: httpx.Response, limit: int) -> Iterator[str]:
    """The lines of an event stream. Raises ChatFailed rather than hold more than `limit` characters."""
    rest = ""
    total = 0
    for piece in response.iter_text():
        total += len(piece)
        if total > limit:
            raise ChatFailed("the chat endpoint sends too much")
        *whole, rest = re.split(r"\r\n|\n|\r", rest + piece)
        # Even without a whole line the clock must be looked at: a comment a second is no reply.
        yield from whole or [""]
    yield rest


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
