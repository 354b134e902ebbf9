"""What a call's caller said, as workers tell it: each sentence once, though two of them heard it. Pure.

Owns which texts wait for the call. While a worker opens the session, the one before may still tell what the other
will hear again, cut into sentences otherwise: its texts wait until it is known who has the session.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from gateway.history import SessionHistory
from model.wire import CallerText


class CallerWords:
    """Of one session, whose history says up to where its caller was heard."""

    def __init__(self, history: SessionHistory) -> None:
        self._history = history
        self._withheld: list[CallerText] = []
        self._due: deque[CallerText] = deque()

    def tell(self, text: CallerText, again: bool) -> None:
        """A worker tells a final text; `again`: another, which is opening the session, will hear that, too."""
        if again:
            self._withheld.append(text)
        elif text.end > self._history.heard:
            self._history.heard = min(text.end, self._history.sent)
            self._due.append(text)

    def release(self) -> None:
        """No other worker took the session: nobody hears again what was withheld."""
        texts, self._withheld = self._withheld, []
        for text in texts:
            self.tell(text, again=False)

    def drop(self) -> None:
        """Another worker has the session: it will say what was withheld."""
        self._withheld.clear()

    def due(self) -> Iterator[CallerText]:
        """What is for the call by now, in order, handed out once."""
        while self._due:
            yield self._due.popleft()
