"""The calls of one engine: what comes in for each, when its slot steps, and what goes out.

Owns the way from an open request to a slot that speaks, the work between steps (prompts, histories, re-priming) and
what is told to whom. Single-threaded: whoever owns it calls `work` again and again. Knows no sockets and no clock;
sessions are numbers that are never used twice, so that nothing late reaches the next caller of a slot.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence

from model import wire
from model.assets import Assets
from model.call_jobs import Call, CannotOpen, Job, Part, do_part
from model.call_speech import CallSpeech
from model.codec_passes import CodecPasses
from model.engine import Stepper, StepResult
from model.engine_options import NAME, Context
from model.history import FAST_FRAMES, HASTY_FRAMES, TakenOver, kept_frames, refill, renewal_margin, renewed_ahead
from model.interleaving import Interleaving
from model.prompt import PromptTooLong
from model.prompt_cache import Prompt, PromptCache
from model.scheduler import Account, Frame, Refused, Scheduler
from model.shared_passes import SharedPasses
from model.voice import VoiceError
from model.voices import VoiceRefused
from model.wire import (
    AgentFrame,
    AgentText,
    Cut,
    Error,
    FromWorker,
    GaveWay,
    History,
    Play,
    Played,
    Ready,
    Say,
    SessionRequest,
)

log = logging.getLogger(__name__)

Tell = Callable[[int, FromWorker], None]
"""Takes a session and what it is told."""

_LOOK_AGAIN = 0.0005
"""Seconds until work that waits for a thread or the device is looked at again."""
_LITTLE_ROOM = 16
"""Frames that are few, before a call loses its prompt."""
_FEW_WAITING = 16
"""Calls that may wait to speak at once while each gets as much of its past as if it were alone."""
_TOGETHER = 16
"""Calls whose parts between passes, which are short, are done in one turn."""
_LONG_TURN = 0.005
"""Seconds after which no other part is begun in a turn: the next step may be due."""


class Calls:
    """All calls of `stepper`. Every method is to be called from one thread."""

    def __init__(
        self,
        stepper: Stepper,
        scheduler: Scheduler,
        prompts: PromptCache,
        assets: Assets,
        tell: Tell,
        clock: Callable[[], float],
        context: Context = "reprime",
    ) -> None:
        """`clock` tells seconds: the clock by which caller frames came."""
        self.stepper, self.scheduler, self.prompts = stepper, scheduler, prompts
        self.cuts = self.faults = self.steps = self.unprompted = 0
        """unprompted: frames answered without all of the prompt, which came back too late."""
        self._assets = assets
        self._passes = SharedPasses(CodecPasses(stepper), prompts.reads)
        self._opened = 0
        self._crowd = 0
        """The most calls that have waited at once since nobody did: whoever comes last is not to wait longest."""
        self._tell = tell
        self._now = clock
        self._reprimes = context == "reprime"
        self._window = stepper.models.config.transformer.context
        self._calls: dict[int, Call] = {}
        self._by_slot: dict[int, Call] = {}
        self._jobs: list[Job] = []
        self._spares = stepper.spare_lm_slots
        self._interleaving = Interleaving()

    # What comes in.

    def open(self, session: int, request: SessionRequest, history: History) -> None:
        """A call wants a slot. It is told Ready when it can speak, or an Error."""
        first = request.resume.next_index if request.resume else 0
        try:
            slot = self.scheduler.open(self._now(), first, under_way=request.resume is not None)
        except Refused as refused:
            self._tell(session, Error("full", str(refused)))
            return
        self._opened += 1
        speech = CallSpeech(self.stepper.speech, self._assets, slot, request)
        call = Call(session, slot, request, speech, self._passes.share(self._opened))
        self._calls[session] = self._by_slot[slot] = call
        self._jobs.append(Job(call, self._opening(call, history)))
        self._crowd = max(self._crowd, self._waiting)

    def frame(self, session: int, index: int, pcm: bytes, came: float) -> None:
        """The caller's 80 ms of a session, and when they came, which may be long before now.

        Of a session that has ended they are nobody's.
        """
        call = self._calls.get(session)
        if call is None:
            return
        if call.live:
            self.scheduler.push(call.slot, index, pcm, came)
        else:
            call.early.append((index, pcm, came))

    def say(self, session: int, text: str) -> None:
        """The agent says this next, in words of its own timing."""
        self._order(session, Say(text))

    def play(self, session: int, name: str) -> None:
        """A prepared clip, sound for sound."""
        self._order(session, Play(name))

    def _order(self, session: int, order: Say | Play) -> None:
        call = self._calls.get(session)
        if call is not None and call.speech.take(order):
            self._jobs.append(Job(call, call.speech.carry_out()))

    def renew(self, session: int) -> None:
        """Give a call its prompt back with the newest of its past, as it gets it before its window is full."""
        call = self._calls[session]
        assert call.prompt is not None, "it speaks"
        if not call.renewing:
            self._renew(call, call.columns.end - kept_frames(self._window, call.prompt.frames))

    def remembering(self, session: int) -> bool:
        """Whether more of a call's past than it speaks with is being read beside it."""
        return self._calls[session].renewing

    def close(self, session: int) -> Account | None:
        """The call is over; its slot is free, and wiped between steps. Returns how it was served, if there was one."""
        call = self._calls.pop(session, None)
        if call is None:
            return None
        del self._by_slot[call.slot]
        account = self.scheduler.close(call.slot, self._now())
        # Behind a pass for it that may be under way in this stream, and no step waits for either. Nor does one touch
        # what is put in order: the slot steps again when its next call speaks, a spare when it has taken a slot's
        # place, and both are filled in this stream and joined before. Of the steps until now none is under way: this
        # stream waits for theirs.
        with self.stepper.aside():
            for job in [job for job in self._jobs if job.call is call]:
                self._jobs.remove(job)
                job.parts.close()
            self.stepper.reset(call.slot)
        call.columns.wipe()
        if account.late or account.lost or account.repeated:
            log.warning("call %s: %s", call.request.call_id, account.told())
        return account

    # Work.

    def work(self) -> bool:
        """A step of the slots that are due, or a part of other work. False if there was nothing to do, or no time."""
        frames = self.scheduler.due(self._now())
        if frames and not self._interleaving.starved(self._waiting):
            self._interleaving.stepped()
            self._step(frames)
            return True
        if not frames and not self._has_time:
            return False
        begun, did = self._now(), self._advance_job()
        self._interleaving.parted(self._now() - begun if did else None)
        if frames:
            self._step(frames)
        return did or bool(frames)

    @property
    def _has_time(self) -> bool:
        """Whether the next step can wait for other work, or that must come before a call loses its prompt."""
        if self._interleaving.has_time(self._now(), self.scheduler.next_due()):
            return True
        room = max(self._margin // 2, _LITTLE_ROOM)
        return any(self._room(job.call) <= room for job in self._jobs if not job.pressing)

    @property
    def _waiting(self) -> int:
        """Calls that are being opened, and others that somebody waits for."""
        return sum(job.pressing for job in self._jobs)

    def wake_at(self) -> float | None:
        """When there is something to do, if nothing comes in before; None: not at all."""
        due = self.scheduler.next_due()
        if not (self._jobs or self.stepper.unwiped) or not self._has_time:
            return due
        look = self._now() + _LOOK_AGAIN
        return look if due is None else min(look, due)

    def _step(self, frames: Sequence[Frame]) -> None:
        self.steps += 1
        result = self.stepper.step([frame.slot for frame in frames], [frame.pcm for frame in frames])
        for row, frame in enumerate(frames):
            call = self._by_slot[frame.slot]
            self._answer(call, frame.index, result, row)
            if text := call.speech.give_way(frame.pcm):
                self._tell(call.session, GaveWay(frame.index, text))
        for frame in self.scheduler.stepped(frames, self._now()):
            if (late := self._by_slot.get(frame.slot)) is not None:
                self._tell(late.session, wire.Late(frame.index))

    def _answer(self, call: Call, index: int, result: StepResult, row: int) -> None:
        if not result.finite[row]:
            self.faults += 1
            log.error("call %s: numbers that are none came out of frame %d", call.request.call_id, index)
            self._end(call, Error("failed", "the model's numbers broke down; the call's slot was closed"))
            return
        tokens = result.tokens[row].tolist()
        piece = self.stepper.models.tokenizer.piece(tokens[0])
        if piece:
            self._tell(call.session, AgentText(index, piece))
        clip = call.speech.returned(tokens)
        if self._reprimes and self._room(call) < 0:
            self._count_unprompted(call, index)
        column = call.columns.append(result.columns[row])
        self._tell(call.session, AgentFrame(index, result.pcm[row].astype("<i2").tobytes(), column))
        if clip:
            self._tell(call.session, Played(index, clip))
        if self._reprimes and not call.renewing:
            self._watch_window(call)

    def _end(self, call: Call, error: Error) -> None:
        self._tell(call.session, error)
        self.close(call.session)

    # Work between steps.

    def _advance_job(self) -> bool:
        """The most pressing part of what can go on. False if nothing can."""
        with self.stepper.aside() as free:
            parts = self._next_parts() if free else None
        for part in parts or ():
            if part.did is None:
                self._jobs.remove(part.job)
                self.stepper.join()
            if part.refusal:
                self._end(part.job.call, Error("invalid", part.refusal))
        if not self._waiting:
            self._crowd = 0
        return parts is not None

    def _next_parts(self) -> list[Part] | None:
        """Calls that wait to speak come first, in the order they came; what they share, once none can go on alone.

        Then what calls have left behind is wiped. Only then those that get their past back, least room first. While
        anybody waits to speak, one that has room does not begin a part: resumed together, all speak before any of them
        remembers more. None: nothing was done.
        """
        waiting = [job for job in self._jobs if job.pressing]
        parts, all_came = self._parts_of(waiting)
        if parts or not all_came or self._passes.work():
            return parts
        if self.stepper.wipe():
            return []
        for room, job in self._by_room():
            if waiting and room > self._margin:
                break
            if (part := do_part(job)).did is not False:
                return [part]
        return None

    def _parts_of(self, waiting: Sequence[Job]) -> tuple[list[Part], bool]:
        """What was done of them in one turn, and whether it came to all: else those after it are for the next turn.

        Then the first do nothing but wait again for their passes, which takes no time.
        """
        until, parts = self._now() + _LONG_TURN, list[Part]()
        for job in waiting:
            if len(parts) == _TOGETHER or self._now() > until:
                return parts, False
            if (part := do_part(job)).did is not False:
                parts.append(part)
        return parts, True

    def _by_room(self) -> list[tuple[int, Job]]:
        """Those that get their past back, least room first, and their room.

        Who has a spare has no more of it than who waits for one, and cannot begin before this is done.
        """
        deep = [(self._room(job.call), job) for job in self._jobs if not job.pressing]
        waiting = () if self._spares else (room for room, job in deep if not job.call.has_spare)
        least = min(waiting, default=self._window)
        rooms = [(min(room, least) if job.call.has_spare else room, job) for room, job in deep]
        return sorted(rooms, key=lambda each: each[0])

    def _opening(self, call: Call, history: History) -> Generator[bool]:
        """From the request to a slot that speaks."""
        try:
            yield from self._prepare(call, history)
        except (VoiceError, VoiceRefused, PromptTooLong, ValueError) as error:
            raise CannotOpen(str(error)) from error
        request = call.request
        yield from call.speech.begin() if request.resume is None else call.speech.go_on(request.resume.queued)
        # By now the device has done all of it: no step will wait for what was begun for this call.
        call.live = True
        self._tell(call.session, Ready(NAME))
        if request.resume is not None and request.resume.missed:
            missed = call.columns.end - request.resume.missed
            self._tell(call.session, wire.Columns(missed, call.columns.data(missed)))
        for index, pcm, came in call.early:
            self.scheduler.push(call.slot, index, pcm, came)
        call.early.clear()

    def _prepare(self, call: Call, history: History) -> Generator[bool]:
        """Voice, prompt and history into the slot."""
        request, resume, stepper = call.request, call.request.resume, self.stepper
        call.prompt = prompt = yield from self._assets.prompt(request.voice, request.prompt)
        first = resume.next_index if resume else 0
        stepper.set_slot(call.slot, request.sampling, prompt.frames + first)
        if resume is None:
            yield from self.prompts.fill(prompt, stepper.lm_slot[call.slot], call.share)
            call.base = prompt.frames
        else:
            taken = yield from TakenOver.of(stepper.models.config, call.share, call.slot, resume, history)
            yield from self._taking_over(call, prompt, taken)
        yield True

    def _taking_over(self, call: Call, prompt: Prompt, taken: TakenOver) -> Generator[bool]:
        """Speak again with the newest frames; the rest follows, if there is room for it."""
        columns = taken.columns
        room = self._window - 1 - prompt.frames - self._margin
        whole = columns.start
        if columns.end - columns.start > room:
            # The newest frame at least, though the prompt leave less room than the margin: the next step goes on there.
            whole = max(columns.start, columns.end - max(1, room // 2))
        fast = max(whole, columns.end - (FAST_FRAMES if self._crowd <= _FEW_WAITING else HASTY_FRAMES))
        yield from taken.fill(self.stepper, self.prompts, call.share, prompt, call.slot, fast)
        call.columns = columns
        call.base = prompt.frames - fast
        if fast > whole or whole > columns.start:
            self._renew(call, whole)

    @property
    def _margin(self) -> int:
        return renewal_margin(self._window)

    def _watch_window(self, call: Call) -> None:
        """Re-prime a call before the window pushes its prompt out; each slot at a time of its own, the first time."""
        assert call.prompt is not None
        prompt = call.prompt.frames
        if self._room(call) <= renewed_ahead(self._window, prompt, None if call.apart else call.slot, self._margin):
            call.apart = True
            self._renew(call, call.columns.end - kept_frames(self._window, prompt))

    def _count_unprompted(self, call: Call, index: int) -> None:
        """Re-priming did not come to its turn in time: this frame was answered without the prompt's beginning."""
        self.unprompted += 1
        if not call.unprompted:
            call.unprompted = True
            log.warning(
                "call %s: from frame %d on it forgets its prompt until that is given back: the engine had no time;"
                " start it with fewer --slots",
                *(call.request.call_id, index),
            )

    def _room(self, call: Call) -> int:
        """Frames until the window pushes its prompt out."""
        return self._window - 1 - call.columns.end - call.base

    def _renew(self, call: Call, start: int) -> None:
        call.renewing = True
        self._jobs.append(Job(call, self._renewing(call, start), pressing=False))

    def _renewing(self, call: Call, start: int) -> Generator[bool]:
        """Fill a spare language memory with the prompt and the frames from `start` on, and put it in place."""
        assert call.prompt is not None
        while not self._spares:
            yield False
        stepper, spare = self.stepper, self._spares.pop()
        call.has_spare = True
        try:
            yield from refill(self.prompts, call.prompt, spare, call.columns, start)
            base = call.prompt.frames - start
            end = call.columns.end
            stepper.state.cache.move(stepper.lm_slot[call.slot], end + call.base, spare, end + base)
            spare = stepper.point(call.slot, spare)
        finally:
            stepper.let_go_lm(spare)
            self._spares.append(spare)
            call.has_spare = False
        call.base = base
        call.renewing = False
        if start > call.columns.start:
            call.columns.forget(start)
            self.cuts += 1
            self._tell(call.session, Cut(start))
