"""The jitter buffer: packets in whenever they come, 20 ms of sound out at each tick. Pure.

Theory of operation. The stream is a line of samples numbered by the RTP timestamp (unwrapped, 8,000 a
second). `_edge` is the next one not yet taken, `_ready` holds samples taken and not yet played. At a
tick at `now` the sample played is `offset = now * 8000 - position` behind its timestamp; a packet whose
transit (arrival minus timestamp, see `delay`) is below that is in time. Everything is steering of that
offset towards the estimator's target:

    small errors, clock skew   frames of 160 +- 2 or +- 4 samples are stretched to 160: no step, no gap
    a packet is missing        invented (see `conceal`); the line moves on, what comes later is late
    nothing is there           invented, the line waits: what comes late is still played, with more
                               delay from now on; beyond MAX_DELAY the line moves on
    silence                    the line jumps to where it should be, unheard
    far beyond MAX_DELAY       the line jumps, cross-faded

Packets may be of any length and overlap. Knows no codec, no SSRC and no sequence numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.rtp.conceal import Concealer
from gateway.rtp.delay import MAX_DELAY, RATE, DelayEstimator
from gateway.rtp.stretch import REACH, stretch

FRAME = 160
MAX_PACKETS = 200
"""Waiting packets beyond which the oldest go: a flood, or 2 s of 10 ms packets."""
STRAY = 8_000
"""Samples by which a packet's transit differs from the stream's before its timestamp is doubted: 1 s."""
STRAYS = 3
"""Doubtful packets in a row after which they are the stream."""
IDLE = 8_000
"""Samples invented in a row after which the stream is taken to have stopped: 1 s."""
_SLACK = 320
"""Samples of delay beyond MAX_DELAY at which stretching gives way to a jump."""
_TOO_LATE, _TOO_EARLY, _STEERED, _STEER_HARD = 80, -16, 8, 100
"""Samples off target at which frames begin to be stretched, cease to be, or are by 4 instead of 2. Too
little delay is mended sooner: it takes sound that is there to stretch any."""
_HALF, _WRAP = 1 << 31, 1 << 32


@dataclass(slots=True)
class JitterCounters:
    """Packets, unless said otherwise."""

    played: int = 0
    late: int = 0
    """Came when their place had been filled."""
    duplicate: int = 0
    overflow: int = 0
    stray: int = 0
    """Timestamps too far off to be of this stream."""
    concealed: int = 0
    """Samples invented while sound was expected."""
    stretched: int = 0
    """Samples taken out (positive) or put in by stretching, in sum of amounts."""
    jumps: int = 0


class JitterBuffer:
    """One stream's."""

    def __init__(self) -> None:
        self.counters = JitterCounters()
        self._estimator = DelayEstimator()
        self._concealer = Concealer()
        self._packets: dict[int, bytes] = {}
        self._newest = 0
        self._edge = 0
        self._ready = b""
        self._before = bytes(2 * REACH)
        self._held = 0
        """Samples invented while the line waited: a gap behind them has been filled already."""
        self._invented = 0
        """Samples invented since the last real one."""
        self._steering = False
        self._delay = 0.0
        self._strays = 0
        self._started = False
        self.playing = False
        """Whether there is a stream to play; while false, `pop` gives None."""

    def restart(self) -> None:
        """Another stream follows (new SSRC): its timestamps have nothing to do with the old ones."""
        self._packets.clear()
        self._estimator.reset()
        self._started = self.playing = False
        self._strays = 0

    @property
    def delay(self) -> float:
        """Seconds by which the fastest packets are held back, when last steered."""
        return self._delay / RATE

    def push(self, timestamp: int, pcm: bytes, now: float) -> None:
        """A packet's int16 samples, which begin at the 32-bit `timestamp`; it arrived at `now`."""
        at = self._newest + ((timestamp - self._newest + _HALF) % _WRAP) - _HALF
        transit = now * RATE - at
        if self._started:
            off = transit - self._estimator.fastest
            if (off > STRAY or off < -STRAY) and not self._believe():
                return
        else:
            self._started = True
        self._strays = 0
        self._newest = at
        self._estimator.observe(transit, now)
        packets = self._packets
        if self.playing and at + len(pcm) // 2 <= self._edge:
            self.counters.late += 1
            return
        if at in packets:
            self.counters.duplicate += 1
            return
        packets[at] = pcm
        if len(packets) > MAX_PACKETS:
            del packets[min(packets)]
            self.counters.overflow += 1

    def _believe(self) -> bool:
        """Whether the timestamps have jumped for good."""
        self._strays += 1
        self.counters.stray += 1
        if self._strays < STRAYS:
            return False
        self.restart()
        self._started = True
        return True

    def pop(self, now: float) -> bytes | None:
        """The next 20 ms, 320 bytes; None while there is no stream. `now` is the tick's nominal time."""
        if not self.playing:
            if not self._packets:
                return None
            self._concealer.invent(0)
            self.playing = True
            self._anchor(now)
        elif self._invented and self._packets and self._concealer.silent:
            self._anchor(now)
        amount = FRAME + self._steer(now)
        if amount == FRAME and not self._concealer.active and len(self._ready) < 2 * FRAME:
            pcm = self._packets.get(self._edge)
            if pcm is not None and len(pcm) >= 2 * FRAME:
                return self._hand_on(pcm)
        return self._compose(amount, now)

    def _hand_on(self, pcm: bytes) -> bytes:
        """What nearly always happens: the packet at the edge completes the frame."""
        del self._packets[self._edge]
        self._edge += len(pcm) // 2
        self._held = self._invented = 0
        self.counters.played += 1
        ready = self._ready + pcm
        self._ready = ready[2 * FRAME :]
        self._before = frame = ready[: 2 * FRAME]
        self._concealer.remember(frame)
        return frame

    def _compose(self, amount: int, now: float) -> bytes:
        """A frame that takes more than handing on one packet."""
        if amount != FRAME:
            self._fill(amount + REACH)
            if len(self._ready) >= 2 * (amount + REACH):
                return self._stretched(amount)
        self._fill(FRAME)
        real = self._ready[: 2 * FRAME]
        self._ready = self._ready[2 * FRAME :]
        if real:
            real = self._real(real)
        while (missing := FRAME - len(real) // 2) > 0:
            real += self._patch(missing, now, real)
        self._concealer.remember(real)
        return real

    def _stretched(self, amount: int) -> bytes:
        frame, rest = self._ready[: 2 * amount], self._ready[2 * amount :]
        made = stretch(self._before[-2 * REACH :], frame, rest[: 2 * REACH])
        self._ready, self._before = rest, frame
        self._invented = 0
        self.counters.stretched += abs(amount - FRAME)
        if self._concealer.active:
            made = self._concealer.resume(made)
        self._concealer.remember(made)
        return made

    def _fill(self, samples: int) -> None:
        """Take packets until `_ready` has this many samples, or the next one is not there."""
        while len(self._ready) < 2 * samples and self._packets:
            pcm = self._packets.pop(self._edge, None)
            if pcm is None:
                first = min(self._packets)
                gap = first - self._edge
                if gap > self._held:
                    return
                pcm = self._packets.pop(first)[max(0, -2 * gap) :]
                self._edge = max(self._edge, first)
                if gap > 0:
                    # The gap has been filled with invented sound while the line waited.
                    self._blend()
            self._held = 0
            self.counters.played += 1
            self._ready += pcm
            self._edge += len(pcm) // 2

    def _blend(self) -> None:
        if not self._concealer.active:
            self._concealer.invent(0)
            self._invented = max(self._invented, 1)

    def _patch(self, missing: int, now: float, since: bytes) -> bytes:
        """Sound for a place where there is none; up to the next packet, if it is known."""
        if self._packets:
            gap = min(self._packets) - self._edge - self._held
            if gap <= 0:
                return self._resumed(missing)
            missing = min(missing, gap)
            self._edge += missing
        elif self._offset(now) + missing <= self._estimator.fastest + MAX_DELAY and not self._concealer.silent:
            self._held += missing
        else:
            self._edge += missing
        self._invented += missing
        if self.counters.played:
            self.counters.concealed += missing
        if self._invented > IDLE:
            self._stop()
        return self._concealer.invent(missing, since)

    def _resumed(self, missing: int) -> bytes:
        """Real sound in the middle of a frame, behind invented sound."""
        self._fill(missing)
        real = self._ready[: 2 * missing]
        self._ready = self._ready[2 * missing :]
        return self._real(real)

    def _real(self, pcm: bytes) -> bytes:
        """Real sound is played, cross-faded with the invented that came before it."""
        self._before = pcm if len(pcm) >= 2 * REACH else self._before[-2 * REACH :] + pcm
        self._invented = 0
        return self._concealer.resume(pcm) if self._concealer.active else pcm

    def _stop(self) -> None:
        """The stream has ceased; the next packet begins it anew, with the transits known so far."""
        self.playing = False
        self.counters.concealed = max(0, self.counters.concealed - self._invented)
        self._held = self._invented = 0

    def _offset(self, now: float) -> float:
        return now * RATE - self._edge + len(self._ready) // 2

    def _steer(self, now: float) -> int:
        """How many samples more or fewer than 160 the frame shall take."""
        estimator = self._estimator
        offset = now * RATE - self._edge + len(self._ready) // 2
        delay = self._delay = offset - estimator.fastest
        error = offset - estimator.target
        if delay > MAX_DELAY + _SLACK:
            self._leap(int(error))
            return 0
        if -_STEERED < error < _STEERED or not (self._steering or error > _TOO_LATE or error < _TOO_EARLY):
            self._steering = False
            return 0
        self._steering = True
        step = 4 if abs(error) > _STEER_HARD else 2
        return step if error > 0 else -step

    def _leap(self, samples: int) -> None:
        """Give up `samples` of the line: after a burst behind a stall, or when ticks were left out."""
        self.counters.jumps += 1
        self._cut()
        position = self._edge + samples
        self._edge = position
        for at in sorted(self._packets):
            if at + len(self._packets[at]) // 2 <= position:
                del self._packets[at]
                self.counters.late += 1

    def _cut(self) -> None:
        """What follows does not continue what was played: let it be cross-faded."""
        self._edge -= len(self._ready) // 2
        self._ready = b""
        self._held = 0
        self._blend()

    def _anchor(self, now: float) -> None:
        """Nothing is heard: put the line where the target wants it, but no waiting packet behind it."""
        first = min(self._packets)
        wanted = round(now * RATE - self._estimator.target)
        earliest = round(now * RATE - self._estimator.fastest - MAX_DELAY)
        self._edge = max(min(wanted, first), earliest)
        self._ready = b""
        self._held = 0
        self._invented = max(self._invented, 1)
        self._steering = False
