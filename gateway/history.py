"""What a call would need to go on with another worker: its history, in memory only, while it lasts. Pure.

Owns the token columns since the last cut, the caller's newest sound and how loud the agent was in it, and what was to
be said and has not been. All of it is bounded: 0.27 MB a call at most. A history is as private as a recording: `wipe`
overwrites it.

The caller's sound is kept as it came from the line, 8 kHz, a third of what the engine is sent. From one
frame more than is asked for, `Upsampler` makes the same samples again that the engine heard.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from gateway.audio import LINE_FRAME_BYTES, Upsampler, level
from gateway.transcript import word_seconds
from model.wire import (
    AGENT_SILENT,
    FRAME_BYTES,
    FRAME_SECONDS,
    MAX_HISTORY_CALLER_FRAMES,
    MAX_HISTORY_FRAMES,
    NO_TOKEN,
    TOKENS_BYTES,
    History,
    Resume,
)

NO_COLUMN = NO_TOKEN.to_bytes(2, "little") * (TOKENS_BYTES // 2)
"""The column of a frame that nobody answered."""
_PART_BYTES = FRAME_BYTES // 4
"""20 ms at 24 kHz: no 32 ms of the gate that knows echo by its level, `model.rehearsal.line_echo`, are louder."""
KEPT_LINE_FRAMES = MAX_HISTORY_CALLER_FRAMES + 1
SAY_FRAMES = 250
"""A text that the agent has not begun within 20 s of being asked for, and of its own length, is let go:
said minutes later, after a loss, it would be worse than never."""
WORD_FRAMES = 6
"""Of each word, at most: slow speech."""
MAX_QUEUED = 8
"""Texts, and clips, that may wait; a call has at most a greeting, a notice and a farewell."""


class SessionHistory:
    """One session's. Frames of 80 ms are counted from 0, those of the caller as they are sent."""

    def __init__(self) -> None:
        self.sent = 0
        """Caller frames so far: the index of the next."""
        self.heard = 0
        """Caller frames before this one are in the transcript."""
        self._cut = 0
        self._columns = bytearray()
        self._ring = bytearray()
        self._levels = bytearray([AGENT_SILENT]) * MAX_HISTORY_CALLER_FRAMES
        """Of the agent's newest frames, each at its index's place; see `Resume.agent_levels`."""
        self._texts: deque[_Text] = deque(maxlen=MAX_QUEUED)
        self._clips: deque[str] = deque(maxlen=MAX_QUEUED)
        self._word = ""
        self._onset: int | None = None
        """Agent frame from which the word is heard; None: not known."""
        self._sounded = 0
        """Agent frames before this one were heard, but for those that nobody answered."""
        self._again = False
        """Silence cut that word off, and whoever goes on is to say it again."""
        self._over = False

    @property
    def answered(self) -> int:
        """Frames up to here have columns: the index of the next that is expected."""
        return self._cut + len(self._columns) // TOKENS_BYTES

    @property
    def size(self) -> int:
        """Bytes of sound and tokens held."""
        return len(self._columns) + len(self._ring)

    @property
    def clips(self) -> tuple[str, ...]:
        """Clips that were asked for and have not been played to their end."""
        return tuple(self._clips)

    def caller(self, line: bytes) -> None:
        """The caller's next frame, 640 int16 samples at 8 kHz. Raises ValueError for any other length."""
        if len(line) != LINE_FRAME_BYTES:
            raise ValueError(f"a frame from the line has {LINE_FRAME_BYTES} bytes, this one {len(line)}")
        if self._over:
            return
        place = self.sent % KEPT_LINE_FRAMES * LINE_FRAME_BYTES
        self._ring[place : place + LINE_FRAME_BYTES] = line
        self._levels[self.sent % MAX_HISTORY_CALLER_FRAMES] = AGENT_SILENT
        self.sent += 1

    def agent(self, index: int, columns: bytes, pcm: bytes = b"") -> None:
        """The columns of frames `index` and on. Of those that were passed over nobody knows any.

        pcm: what was heard of the agent in the first of them, int16 at 24 kHz; it was silent in those without.

        Raises ValueError for frames that were never sent.
        """
        if self._over:
            return
        end = index + len(columns) // TOKENS_BYTES
        if end > self.sent:
            raise ValueError(f"frame {end - 1} has not been sent, only {self.sent} have")
        if pcm and index >= self.sent - MAX_HISTORY_CALLER_FRAMES:
            self._levels[index % MAX_HISTORY_CALLER_FRAMES] = _decibels(pcm)
        if index < self.answered:
            self._fill(index, columns)
            return
        self._columns += NO_COLUMN * (index - self.answered) + columns
        if columns:
            self._sounded = end
        excess = len(self._columns) // TOKENS_BYTES - MAX_HISTORY_FRAMES
        if excess > 0:
            self._drop(excess)

    def _fill(self, index: int, columns: bytes) -> None:
        """Columns that come after those that follow them: of missed frames, once they have been made."""
        start = TOKENS_BYTES * (index - self._cut)
        if start < 0:
            columns, start = columns[-start:], 0
        columns = columns[: len(self._columns) - start]
        self._columns[start : start + len(columns)] = columns

    def cut(self, index: int) -> None:
        """Columns before frame `index` are not needed any more."""
        self._drop(min(max(0, index - self._cut), len(self._columns) // TOKENS_BYTES))

    def _drop(self, count: int) -> None:
        del self._columns[: TOKENS_BYTES * count]
        self._cut += count

    # What was to be said.

    def say(self, text: str) -> None:
        """The agent was asked to say this next."""
        if (words := text.split()) and not self._over:
            self._texts.append(_Text(words, list(words), self.sent + SAY_FRAMES + WORD_FRAMES * len(words)))

    def gave_way(self, text: str) -> None:
        """The caller spoke over the agent: of what ends with this text, and of all before it, nothing more is said."""
        words = text.split()
        over = next((place for place, one in enumerate(self._texts) if one.words[-len(words) :] == words), -1)
        for _ in range(over + 1):
            self._texts.popleft()
        self._word = ""

    def play(self, clip: str) -> None:
        """A clip was asked for."""
        if not self._over:
            self._clips.append(clip)

    def played(self, clip: str) -> None:
        """A clip was heard to its end."""
        if clip in self._clips:
            self._clips.remove(clip)

    def spoke(self, piece: str, index: int | None = None) -> None:
        """A piece of what the agent said, heard from frame `index` on; a leading space starts a word.

        A word that was still to be heard in a frame that nobody answers is said again elsewhere; where `index` is not
        given, it has been said with its last letter.
        """
        if self._over:
            return
        if piece[:1].isspace():
            self._end_word()
        if " " in piece or not self._word:
            self._onset = index
        *whole, self._word = (self._word + piece).split(" ")
        for word in whole:
            self._said(word)

    def goes_on(self) -> None:
        """Another worker has the session as `resume` told it: what it says again has not been said yet."""
        if self._again:
            self._word = ""
        self._end_word()
        self._again = False

    @property
    def _half_said(self) -> bool:
        """Whether what was heard of the agent ends within its word, by how long that is estimated to be."""
        if self._onset is None:
            return False
        return word_seconds(self._word) > (self._sounded - self._onset) * FRAME_SECONDS

    def _end_word(self) -> None:
        self._said(self._word)
        self._word = ""

    def _said(self, word: str) -> None:
        """Tick a word off; words that the agent adds of its own accord are not in the text, and pass."""
        self._forget_old()
        if self._texts and _letters(word) == _letters(self._texts[0].left[0]):
            self._texts[0].left.pop(0)
            if not self._texts[0].left:
                self._texts.popleft()

    def _forget_old(self) -> None:
        while self._texts and self._texts[0].until < self.sent:
            self._texts.popleft()

    # Going on elsewhere.

    def resume(self) -> Resume:
        """How the session stands: every frame sent, and those among them that nobody answered.

        When more went unanswered than the caller's sound is kept for, 10 s, nobody will ever know what the older ones
        were: they are passed over.
        """
        if self.sent - self.answered > MAX_HISTORY_CALLER_FRAMES:
            self.agent(self.sent - MAX_HISTORY_CALLER_FRAMES, b"")
        missed = self.sent - self.answered
        self._again = missed > 0 and self._half_said
        return Resume(
            cut=self._cut,
            frames=len(self._columns) // TOKENS_BYTES,
            caller_frames=min(self.sent, MAX_HISTORY_CALLER_FRAMES),
            missed=missed,
            heard=self.heard,
            queued=self._queued(),
            agent_levels=self._agent_levels(),
        )

    def content(self) -> History:
        """What `resume` describes: the columns, and the caller's sound at 24 kHz. Takes about 5 ms."""
        upsample = Upsampler()
        # Frame by frame: all at once is less arithmetic and twice the time, for it leaves the processor's cache.
        frames = [upsample(frame) for frame in self._line_frames()]
        return History(bytes(self._columns), b"".join(frames[-MAX_HISTORY_CALLER_FRAMES:]))

    def _line_frames(self) -> list[bytes]:
        kept = range(max(0, self.sent - KEPT_LINE_FRAMES), self.sent)
        places = (index % KEPT_LINE_FRAMES * LINE_FRAME_BYTES for index in kept)
        return [bytes(self._ring[place : place + LINE_FRAME_BYTES]) for place in places]

    def _agent_levels(self) -> tuple[int, ...]:
        frames = range(max(0, self.sent - MAX_HISTORY_CALLER_FRAMES), self.sent)
        levels = tuple(self._levels[index % MAX_HISTORY_CALLER_FRAMES] for index in frames)
        return levels if any(one < AGENT_SILENT for one in levels) else ()

    def _queued(self) -> tuple[str, ...]:
        self._forget_old()
        texts = [text.left for text in self._texts]
        said = self._word and not self._again
        if texts and said and _letters(self._word) == _letters(texts[0][0]):
            texts[0] = texts[0][1:]
        return tuple(" ".join(left) for left in texts if left)

    def wipe(self) -> None:
        """The session is over: overwrite what was kept. What is still told of it is not kept any more."""
        self._over = True
        for kept in (self._columns, self._ring):
            kept[:] = bytes(len(kept))
            kept.clear()
        self._levels[:] = bytes([AGENT_SILENT]) * len(self._levels)
        self._texts.clear()
        self._clips.clear()
        self._word = ""


@dataclass(slots=True)
class _Text:
    words: list[str]
    left: list[str]
    until: int
    """Caller frames sent, after which it is let go."""


def _decibels(pcm: bytes) -> int:
    """How loud 80 ms are at their loudest, see `Resume.agent_levels`."""
    loudest = max(level(pcm[start : start + _PART_BYTES]) for start in range(0, len(pcm), _PART_BYTES))
    if not loudest:
        return AGENT_SILENT
    return min(max(0, math.floor(-20 * math.log10(loudest / 32_768))), AGENT_SILENT)


def _letters(word: str) -> str:
    return "".join(char for char in word.casefold() if char.isalnum())
