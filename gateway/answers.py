"""What a call hears of its session, whichever worker has it: each frame once, with the words that belong to it. Pure.

Owns the order of all that workers say and what of it has to wait: words for their frame, and all of it while another
worker opens the session as it stood before. Tells the session's history what another would need. Which worker that is,
and when one counts as lost, is `gateway.resume`'s.
"""

from __future__ import annotations

from collections.abc import Iterator

from gateway.caller_words import CallerWords
from gateway.history import SessionHistory
from model.wire import FRAME_BYTES, AgentFrame, AgentText, CallerText, Columns, Cut, GaveWay, Late, Output, Played

_SILENCE = bytes(FRAME_BYTES)


class Answers:
    """Of one session. What it is given by a worker that breaks the protocol raises ValueError, with how it does."""

    def __init__(self, history: SessionHistory) -> None:
        self.next = 0
        """The frame that the caller hears next."""
        self.last_speech = 0
        """The caller frame with which the agent last said something."""
        self._history = history
        self._words = CallerWords(history)
        self._texts: list[AgentText] = []
        """What the agent says with its next frame: said only once that frame is here."""
        self._withheld: list[Output] = []
        """What the worker said since another opens the session as it stood then: for the call if it keeps it."""

    @property
    def waiting(self) -> int:
        """How much of what the agent said waits."""
        return len(self._texts) + len(self._withheld)

    def take(self, output: Output, opening: bool) -> Iterator[Output]:
        """What of this, and of what waited for it, is for the call now; `opening`: another opens the session."""
        yield from self._words.due()
        if isinstance(output, CallerText) and output.final:
            self._words.tell(output, again=opening)
            yield from self._words.due()
        elif opening and not isinstance(output, CallerText | Late):
            self._withheld.append(output)
        else:
            if not opening:
                yield from self.release()
            yield from self._pass_on(output)

    def release(self) -> Iterator[Output]:
        """Nobody else has the session: what was withheld is for the call."""
        withheld, self._withheld = self._withheld, []
        for output in withheld:
            yield from self._pass_on(output)

    def _pass_on(self, output: Output) -> Iterator[Output]:
        match output:
            case AgentFrame():
                self._answer(output)
                yield from self._spoken()
                yield output
            case AgentText():
                self._texts.append(output)
            case Cut() | Columns() | Played() | GaveWay():
                self._remember(output)
            case CallerText() | Late():
                yield output
            case _:
                yield from self._spoken()
                yield output

    def _remember(self, output: Cut | Columns | Played | GaveWay) -> None:
        """What only another worker would need."""
        match output:
            case Cut():
                self._history.cut(output.index)
            case Columns():
                try:
                    self._history.agent(output.index, output.columns)
                except ValueError as error:
                    raise ValueError(f"of its columns, {error}") from None
            case Played():
                self._history.played(output.clip)
            case GaveWay():
                self._history.gave_way(output.text)

    def _answer(self, frame: AgentFrame) -> None:
        due, sent = self.next, self._history.sent
        if frame.index != due or frame.index >= sent:
            raise ValueError(f"it answered frame {frame.index} where {due} of {sent} was due")
        if frame.tokens:
            self._history.agent(frame.index, frame.tokens, frame.pcm)
        self.next = frame.index + 1

    def _spoken(self) -> list[AgentText]:
        texts, self._texts = self._texts, []
        for text in texts:
            self.last_speech = self._history.sent
            self._history.spoke(text.text, text.index)
        return texts

    def silence(self, until: int) -> Iterator[AgentFrame | CallerText]:
        """What the caller hears in place of frames that nobody will answer."""
        yield from self._words.due()
        while self.next < until:
            self.next += 1
            yield AgentFrame(self.next - 1, _SILENCE)

    def caller_words(self) -> Iterator[CallerText]:
        """What is known of the caller's and has not been handed out."""
        yield from self._words.due()

    # What becomes of what waits.

    def kept(self) -> None:
        """No other worker took the session: it hears nothing again."""
        self._words.release()

    def handed_over(self) -> None:
        """Another worker has the session, and says what was withheld in its own way."""
        self._withheld.clear()
        self._words.drop()

    def forget(self) -> None:
        """Nobody will hear what the agent was about to say."""
        self._withheld.clear()
        self._texts.clear()
