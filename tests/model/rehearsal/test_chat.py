"""The chat client against a real HTTP server on loopback that streams, stalls, breaks and refuses."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from model.rehearsal.chat import Chat, ChatFailed, ChatSettings, Message, plain

QUESTION = [Message("system", "You work for a bank."), Message("user", "When do you close?")]


class Server(ThreadingHTTPServer):
    """One endpoint; `answer` writes the response, `released` is set when the test is over."""

    daemon_threads = True

    def __init__(self, answer: Callable[[Handler], None]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.released = threading.Event()
        self.hung_up = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.hung_up.set()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, dict(self.headers), body))
        self.close_connection = True
        self.server.answer(self)

    def begin(self, status: int = 200, kind: str = "text/event-stream") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        self.end_headers()

    def event(self, content: str) -> None:
        self.raw("data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": content}}]}) + "\n\n")

    def raw(self, text: str) -> None:
        self.wfile.write(text.encode())
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        return


@contextmanager
def serving(answer: Callable[[Handler], None], **other: Any) -> Iterator[tuple[Chat, Server]]:
    with Server(answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        chat = Chat(ChatSettings(f"http://127.0.0.1:{server.server_port}/v1", **other))
        try:
            yield chat, server
        finally:
            server.released.set()
            chat.close()
            server.shutdown()
            thread.join(10)


def pieces(*texts: str, end: str = "data: [DONE]\n\n") -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.begin()
        handler.raw('data: {"choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n')
        for text in texts:
            handler.event(text)
        handler.raw(end)

    return answer


def test_sentences_as_they_come() -> None:
    with serving(pieces("We clo", "se at 5", " p.m.", " today. Dr. ", "Lee", " knows", "! Bye", ".")) as (chat, server):
        assert list(chat.stream(QUESTION)) == ["We close at 5 p.m. today.", "Dr. Lee knows!", "Bye."]
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    assert body == {
        "stream": True,
        "messages": [
            {"role": "system", "content": "You work for a bank."},
            {"role": "user", "content": "When do you close?"},
        ],
    }


def test_key_model_and_full_address() -> None:
    with serving(pieces("Yes."), model="small", key="secret") as (chat, server):
        assert list(chat.stream(QUESTION)) == ["Yes."]
        full = Chat(ChatSettings(f"http://127.0.0.1:{server.server_port}/v1/chat/completions"))
        assert list(full.stream(QUESTION)) == ["Yes."]
        full.close()
    assert server.requests[0][1]["Authorization"] == "Bearer secret"
    assert server.requests[0][2]["model"] == "small"
    assert server.requests[1][0] == "/v1/chat/completions"


def test_the_first_sentence_does_not_wait_for_the_second() -> None:
    def answer(handler: Handler) -> None:
        handler.begin()
        handler.event("One moment. T")
        handler.server.released.wait(10)

    with serving(answer) as (chat, _):
        reply = chat.stream(QUESTION)
        assert next(reply) == "One moment."
        reply.close()  # type: ignore[attr-defined]


def test_a_dropped_reply_ends_the_request() -> None:
    def answer(handler: Handler) -> None:
        handler.begin()
        while not handler.server.released.is_set():
            handler.event("Still talking. ")

    with serving(answer, longest=10**6) as (chat, server):
        reply = chat.stream(QUESTION)
        next(reply)
        reply.close()  # type: ignore[attr-defined]
        assert server.hung_up.wait(10)


def test_a_reply_not_wanted_any_more_ends_the_request_before_its_first_word() -> None:
    asked = threading.Event()

    def answer(handler: Handler) -> None:
        handler.begin()
        asked.set()
        while not handler.server.released.is_set():
            handler.raw(": thinking\n\n")

    with serving(answer, first_word=60) as (chat, server):
        assert list(chat.stream(QUESTION, lambda: not asked.is_set())) == []
        assert server.hung_up.wait(10)


def test_closing_ends_replies_that_are_being_read() -> None:
    def answer(handler: Handler) -> None:
        handler.begin()
        handler.event("One moment. Then")
        handler.server.released.wait(10)

    with serving(answer) as (chat, _):
        reply = chat.stream(QUESTION)
        assert next(reply) == "One moment."
        chat.close()
        with pytest.raises(ChatFailed, match="not asked any more"):
            next(reply)


def escaped(*contents: str) -> Callable[[Handler], None]:
    """Events with JSON escapes as they are."""

    def answer(handler: Handler) -> None:
        handler.begin()
        for content in contents:
            handler.raw('data: {"choices":[{"index":0,"delta":{"content":"' + content + '"}}]}\n\n')

    return answer


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (["Clef \\ud834", "\\udd1e here."], "Clef \U0001d11e here."),
        (["Fine \\ud83d", "\\ude00."], "Fine ."),
        (["Half \\ud83d", " a smile."], "Half a smile."),
        (["Other \\ude00half."], "Other half."),
        (["At the end \\ud83d"], "At the end"),
    ],
)
def test_halves_of_characters_are_joined_or_left_out(contents: list[str], said: str) -> None:
    with serving(escaped(*contents)) as (chat, _):
        assert list(chat.stream(QUESTION)) == [said]


def test_comments_empty_events_and_crlf() -> None:
    def answer(handler: Handler) -> None:
        handler.begin()
        handler.raw(": warming up\r\n\r\n")
        handler.raw('data: {"choices":[]}\r\n\r\n')
        handler.raw('data:{"choices":[{"delta":{"content":null}}]}\r\n\r\n')
        handler.raw('event: x\r\ndata: {"choices":[{"delta":{"content":"**Fine**, caf')
        handler.raw('é."},"finish_reason":"stop"}]}\r\n\r\ndata: [DONE]\r\n\r\n')

    with serving(answer) as (chat, _):
        assert list(chat.stream(QUESTION)) == ["Fine, café."]


def test_an_endpoint_that_does_not_stream() -> None:
    def answer(handler: Handler) -> None:
        handler.begin(kind="application/json")
        handler.raw('{"choices":[{"message":{"role":"assistant","content":"At five. Bye."}}]}')

    with serving(answer) as (chat, _):
        assert list(chat.stream(QUESTION)) == ["At five.", "Bye."]


def test_long_replies_are_cut_after_a_sentence() -> None:
    with serving(pieces(*["A sentence of words. "] * 50), longest=60) as (chat, _):
        assert list(chat.stream(QUESTION)) == ["A sentence of words."] * 4


def silent(handler: Handler) -> None:
    handler.begin()
    handler.server.released.wait(10)


def comments_only(handler: Handler) -> None:
    handler.begin()
    while not handler.server.released.wait(0.02):
        handler.raw(": wait\n\n")


def no_headers(handler: Handler) -> None:
    handler.server.released.wait(10)


def trickle(handler: Handler) -> None:
    handler.begin()
    while not handler.server.released.wait(0.02):
        handler.event("very ")


@pytest.mark.parametrize("answer", [silent, comments_only, no_headers, trickle])
def test_too_slow(answer: Callable[[Handler], None]) -> None:
    with (
        serving(answer, first_word=0.2, stall=0.2, total=0.6) as (chat, _),
        pytest.raises(ChatFailed, match="too slow"),
    ):
        list(chat.stream(QUESTION))


def test_stalls_after_a_sentence() -> None:
    def answer(handler: Handler) -> None:
        handler.begin()
        handler.event("One moment. Then")
        handler.server.released.wait(10)

    with serving(answer, first_word=0.5, stall=0.2) as (chat, _):
        reply = chat.stream(QUESTION)
        assert next(reply) == "One moment."
        with pytest.raises(ChatFailed, match="too slow"):
            next(reply)


def status(code: int) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.begin(code, "application/json")
        handler.raw('{"error":{"message":"no"}}')

    return answer


def cut(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.event("Half a sen")
    handler.connection.shutdown(socket.SHUT_RDWR)


def endless_line(handler: Handler) -> None:
    handler.begin()
    while not handler.server.released.is_set():
        handler.raw("data: " + "x" * 65536)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (status(401), "401"),
        (status(404), "404"),
        (status(429), "429"),
        (status(500), "500"),
        (status(302), "302"),
        (cut, "cannot be used"),
        (endless_line, "too much"),
        (pieces(end="data: {oops\n\n"), "not a chat completion"),
        (pieces(end='data: {"error":"overloaded"}\n\n'), "not a chat completion"),
        (pieces(end='data: {"choices":[{"delta":{"content":7}}]}\n\n'), "not a chat completion"),
        (pieces(end="data: [1]\n\n"), "not a chat completion"),
        (pieces(), "empty"),
        (pieces("", " \n"), "empty"),
    ],
)
def test_failures_are_named(answer: Callable[[Handler], None], why: str) -> None:
    with serving(answer) as (chat, _), pytest.raises(ChatFailed, match=why):
        list(chat.stream(QUESTION))


def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        chat = Chat(ChatSettings(f"http://127.0.0.1:{unused.getsockname()[1]}", first_word=2))
        with pytest.raises(ChatFailed, match="cannot be used"):
            list(chat.stream(QUESTION))
        chat.close()


@pytest.mark.parametrize("url", ["not a url", "http://[", "ftp://host/v1"])
def test_addresses_that_are_none(url: str) -> None:
    chat = Chat(ChatSettings(url))
    with pytest.raises(ChatFailed, match="cannot be used"):
        list(chat.stream(QUESTION))
    chat.close()


def test_markup_is_not_spoken() -> None:
    assert plain("- **Hours:** see [our page](http://x.example) \U0001f600 `now`") == "Hours: see our page now"
    assert plain("2) Second") == "Second"
