"""Whose turn it is: the decisions of a conversation by voice, without any sound in them.

Owns when a caller's utterance begins and ends, when the agent gives way, goes on, answers or asks whether
anybody is there. Pure: time is the number of 32 ms windows heard so far, and every input answers with the
actions to take. Knows no audio, no recogniser, no dialogue.

The agent is in one of four states: `idle` (nothing to say), `thinking` (a reply was asked for), `speaking`,
and `held` (it has something to say, but the caller talks). An utterance opens on a few windows of speech.
When it pauses, it is recognised at once, in case this was its end; if the caller goes on, that result is
kept or forgotten, and when the silence has lasted, the result decides what happens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from model.rehearsal.backchannel import Ending, asks_for_floor, ending, is_backchannel


@dataclass(frozen=True, slots=True)
class Timing:
    """In windows of 32 ms."""

    onset: int = 3
    """Windows of speech among the last eight that open an utterance."""
    barge_in: int = 5
    """The same, for the agent to give way: with the window or two that voice activity lags, 200 ms."""
    least: int = 4
    """An utterance with less speech than this is a click or a cough."""
    quick: int = 6
    """Silence after which an utterance is recognised, in case it is over: 192 ms."""
    end_question: int = 13
    """Silence that ends an utterance that is a question: 416 ms."""
    end: int = 15
    """Silence that ends one that is short and complete: 480 ms."""
    end_statement: int = 21
    """Silence that ends one that tells something, and may go on to tell more: 672 ms."""
    end_open: int = 26
    """Silence that ends one that does not sound finished: 832 ms. The most that is waited."""
    beyond: int = 6
    """A statement is over when silence is this much longer than the caller's longest pause so far."""
    cut_in: int = 4
    """For each time the agent cut in, so much longer it waits in the rest of the call."""
    end_noise: int = 8
    """Silence that ends one in which no words were found, or only listening ones over the agent."""
    patience: int = 281
    """Silence of both after which the agent asks whether anybody is there: 9 s."""
    longest: int = 780
    """An utterance is recognised in pieces of at most this: 25 s."""
    piece: int = 250
    """At a pause after this much, 8 s, what was recognised is kept, and not recognised again."""
    lead: int = 8
    """How much sound before the first window of speech is recognised with it."""
    hum: int = 18
    """A "mm-hm" has at most this much speech, 0.6 s."""
    murmur: int = 25
    """A listening remark that is hard to understand has at most this much, 0.8 s."""
    unheard: int = 22
    """A reply of which less than this was heard, 0.7 s or two words, counts as not heard: the caller went on."""


class Agent(Enum):
    IDLE = auto()
    THINKING = auto()
    SPEAKING = auto()
    HELD = auto()


@dataclass(frozen=True, slots=True)
class Recognise:
    """Turn the sound from window `start` up to `end` into text, and give it to `recognised`."""

    attempt: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Pause:
    """Stop the agent's sound at once."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on with what was paused."""


@dataclass(frozen=True, slots=True)
class Said:
    """The caller's utterance, from window `start` up to `end`."""

    start: int
    end: int
    text: str
    onsets: tuple[int, ...] = ()
    """The window in which each of its words begins; empty where that is not known."""
    confidence: float | None = None
    """Mean log probability a token of its least certain part; None where that is not known."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Drop what the agent still had to say, and answer `text`."""

    text: str
    instead: bool = False
    """The reply under way counts as never said, if a word of it was: `text` begins with what it answered."""


@dataclass(frozen=True, slots=True)
class StillThere:
    """Ask whether the caller is there."""


Action = Recognise | Pause | Resume | Said | Reply | StillThere


@dataclass(frozen=True, slots=True)
class _Part:
    """What one recognition gave: words, and the window in which each begins, if that is known."""

    start: int
    text: str = ""
    onsets: tuple[int, ...] = ()
    confidence: float | None = None

    @property
    def spread(self) -> tuple[int, ...]:
        """An onset for each word: the start of the whole for those that are not known."""
        return self.onsets or (self.start,) * len(self.text.split())


@dataclass(slots=True)
class _Utterance:
    start: int
    last: int
    """The newest window with speech."""
    voiced: int
    piece_start: int
    late: bool
    """It began in the last second of a question of the agent: it may be the answer."""
    parts: list[_Part] = field(default_factory=list)
    attempt: int = -1
    """The recognition that covers the utterance to its end so far; -1: none."""
    text: _Part | None = None
    """What that gave."""
    confidence: float = 0.0
    pieces: dict[int, int] = field(default_factory=dict)
    """Recognitions of pieces not yet done: attempt -> place in `parts`."""
    starts: dict[int, int] = field(default_factory=dict)
    """Attempt -> the window from which it recognises."""

    @property
    def words(self) -> str:
        return " ".join(part.text for part in self._all())

    @property
    def onsets(self) -> tuple[int, ...]:
        """The window in which each word begins; empty if that is known of none."""
        parts = self._all()
        return tuple(onset for part in parts for onset in part.spread) if any(part.onsets for part in parts) else ()

    @property
    def certainty(self) -> float | None:
        """Of the part that is the least certain; None if that is not known of each."""
        known = [part.confidence for part in self._all() if part.confidence is not None]
        return min(known) if known and len(known) == len(self._all()) else None

    def _all(self) -> list[_Part]:
        return [part for part in [*self.parts, self.text] if part is not None and part.text]


class Turns:
    """One call. `hear` every window; the other methods when what they are named for happens."""

    def __init__(self, timing: Timing | None = None) -> None:
        self.agent = Agent.IDLE
        self.closing = False
        """The agent takes its leave: "thanks, bye" does not stop it."""
        self._timing = timing or Timing()
        self._now = 0
        self._recent: deque[bool] = deque(maxlen=8)
        self._utterance: _Utterance | None = None
        self._quiet_since = 0
        self.attempts = 0
        """Recognitions asked for so far."""
        self._answering = ""
        """The caller's words that the agent's present turn answers."""
        self._speaking_since: int | None = None
        self._longest_pause = 0
        """Of those after which the caller went on."""
        self._over = False
        self._cut_ins = 0

    @property
    def caller_talks(self) -> bool:
        """Whether an utterance of the caller is open."""
        return self._utterance is not None

    def hear(self, speech: bool, late_in_question: bool = False) -> list[Action]:
        """The next window of the caller, and whether the agent is in the last second of a question."""
        now = self._now
        self._now += 1
        self._recent.append(speech)
        if self._utterance is None:
            return self._listen(now, late_in_question)
        utterance = self._utterance
        actions: list[Action] = []
        if speech:
            self._go_on(utterance, now)
        if self.agent is Agent.SPEAKING and sum(self._recent) >= self._timing.barge_in:
            self.agent = Agent.HELD
            actions.append(Pause())
        if self._pauses(utterance, now):
            actions.append(self._recognise(utterance))
        if now - utterance.piece_start >= self._timing.longest:
            actions.append(self._cut(utterance))
        return actions + self._conclude()

    def recognised(
        self, attempt: int, text: str, confidence: float | None = None, onsets: Sequence[int] = ()
    ) -> list[Action]:
        """The text for a `Recognise`, and its mean log probability a token. Late ones are ignored.

        `onsets`: windows from the start of what was to be recognised to each word, if known.
        """
        utterance = self._utterance
        if utterance is None:
            return []
        start = utterance.starts.pop(attempt, 0)
        part = _Part(start, text, tuple(start + onset for onset in onsets), confidence)
        if attempt in utterance.pieces:
            utterance.parts[utterance.pieces.pop(attempt)] = part
        elif attempt == utterance.attempt:
            utterance.text = part
            utterance.confidence = confidence or 0.0
        return self._conclude()

    def end(self) -> list[Action]:
        """The caller is gone: what they were saying is over, and once it is recognised, said. Nobody answers it."""
        self._over = True
        utterance = self._utterance
        if utterance is None or utterance.voiced < self._timing.least:
            return []
        return [self._recognise(utterance)] if utterance.attempt < 0 else self._conclude()

    def wants(self, attempt: int) -> bool:
        """Whether the text of a `Recognise` would still be of use; if not, it need not be computed."""
        utterance = self._utterance
        return utterance is not None and (attempt == utterance.attempt or attempt in utterance.pieces)

    def agent_thinks(self) -> None:
        """A reply is being prepared that the caller did not ask for: a greeting, an announcement."""
        self.agent = Agent.THINKING
        self._answering = ""
        self._speaking_since = None

    def agent_speaks(self) -> bool:
        """The first sound of a reply is ready: whether it may be released now. If not, `Resume` or `Reply` follows."""
        if self.agent is Agent.THINKING:
            self._speaking_since = self._now
            self.agent = Agent.SPEAKING if self._utterance is None else Agent.HELD
        return self.agent is not Agent.HELD

    def agent_finished(self) -> None:
        """All of a reply was released, or there was nothing to say."""
        self.agent = Agent.IDLE
        self._quiet_since = self._now
        self._speaking_since = None
        self._answering = ""

    def _listen(self, now: int, late_in_question: bool) -> list[Action]:
        """No utterance is open."""
        voiced = sum(self._recent)
        if voiced >= self._timing.onset:
            start = now + 1 - len(self._recent) + list(self._recent).index(True)
            piece_start = max(0, start - self._timing.lead)
            self._utterance = _Utterance(start, now, voiced, piece_start, late_in_question)
        elif self.agent is Agent.IDLE and now - self._quiet_since >= self._timing.patience:
            self.agent_thinks()
            return [StillThere()]
        return []

    def _go_on(self, utterance: _Utterance, now: int) -> None:
        """The caller speaks on: what was recognised at a pause is kept if it is long, else forgotten."""
        utterance.voiced += 1
        self._longest_pause = max(self._longest_pause, now - utterance.last - 1)
        utterance.last = now
        if utterance.attempt < 0:
            return
        if utterance.text and utterance.text.text and now - utterance.piece_start >= self._timing.piece:
            utterance.parts.append(utterance.text)
            utterance.piece_start = max(utterance.piece_start, now - self._timing.quick)
        utterance.attempt = -1
        utterance.text = None

    def _pauses(self, utterance: _Utterance, now: int) -> bool:
        """Whether it is time to recognise what may be the whole utterance."""
        enough = utterance.voiced >= self._timing.least
        return enough and utterance.attempt < 0 and now - utterance.last == self._timing.quick

    def _recognise(self, utterance: _Utterance) -> Recognise:
        self.attempts += 1
        utterance.attempt = self.attempts
        utterance.starts[self.attempts] = utterance.piece_start
        return Recognise(self.attempts, utterance.piece_start, self._now)

    def _cut(self, utterance: _Utterance) -> Recognise:
        """The caller has spoken for very long without a pause: recognise what there is, and go on."""
        action = self._recognise(utterance)
        utterance.pieces[action.attempt] = len(utterance.parts)
        utterance.parts.append(_Part(utterance.piece_start))
        utterance.attempt = -1
        utterance.piece_start = self._now
        return action

    def _conclude(self) -> list[Action]:
        """End the utterance if it is over and its words are known."""
        utterance = self._utterance
        if utterance is None:
            return []
        silence = self._now - 1 - utterance.last
        if utterance.voiced < self._timing.least and silence >= self._timing.quick:
            return self._close(utterance, "")
        if utterance.text is None or utterance.pieces:
            return []
        if self._over:
            return self._close(utterance, utterance.words)
        over_agent = self.agent in (Agent.SPEAKING, Agent.HELD)
        words = utterance.words
        if not words or (over_agent and self._gives_way(utterance, words)):
            needed = self._timing.end_noise
        else:
            needed = self._hold(words)
        return self._close(utterance, words) if silence >= needed else []

    def _hold(self, words: str) -> int:
        """How long a silence ends an utterance: less after a question, more where the caller may go on."""
        timing = self._timing
        match ending(words):
            case Ending.QUESTION:
                needed = timing.end_question
            case Ending.SHORT:
                needed = timing.end
            case Ending.STATEMENT:
                needed = max(timing.end_statement, self._longest_pause + timing.beyond)
            case Ending.OPEN:
                needed = timing.end_open
        return min(needed + self._cut_ins * timing.cut_in, timing.end_open)

    def _close(self, utterance: _Utterance, words: str) -> list[Action]:
        self._utterance = None
        self._recent.clear()
        self._quiet_since = self._now
        said = Said(utterance.start, utterance.last + 1, words, utterance.onsets, utterance.certainty)
        actions: list[Action] = [said] if words else []
        if self._over:
            return actions
        if self.agent is Agent.IDLE:
            return actions + ([self._reply(words)] if words else [])
        if self._gives_way(utterance, words):
            if self.agent is Agent.HELD:
                self.agent = Agent.SPEAKING
                actions.append(Resume())
            return actions
        since = self._speaking_since
        heard = since is not None and utterance.start - since >= self._timing.unheard
        instead = not heard and bool(self._answering)
        if instead:
            self._cut_ins += since is not None
            words = f"{self._answering} {words}"
        return [*actions, self._reply(words, instead)]

    def _gives_way(self, utterance: _Utterance, words: str) -> bool:
        """Whether the caller, over the agent, did not want the floor."""
        if not words or is_backchannel(words, self.closing):
            return not (words and utterance.late and self.agent is not Agent.THINKING)
        # A hum has no words; what the recogniser makes of it are short guesses.
        unsure = utterance.confidence < (-0.5 if utterance.voiced <= self._timing.hum else -1.0)
        return unsure and utterance.voiced <= self._timing.murmur and not asks_for_floor(words)

    def _reply(self, words: str, instead: bool = False) -> Reply:
        self.agent_thinks()
        self._answering = words
        self.closing = False
        return Reply(words, instead)
