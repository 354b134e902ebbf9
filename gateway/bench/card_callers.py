"""Callers who say a card's number, made by speech synthesis: what they say and when each digit was said.

Owns the phrasings; the rules were never tuned on those of `HELD_OUT`. Voices are those that this machine
has: Hibari with the speech package, flite and espeak-ng where they are installed. Each group of digits is
synthesised by itself, so that its place in the sound is known to the sample.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import soxr
from numpy.typing import NDArray

from gateway.audio import decode_ulaw, encode_ulaw
from gateway.phone.sound import RATE, read_wav

Floats = NDArray[np.float32]
Say = Callable[[str], Floats]
"""Text -> sound at 8 kHz, -1 to 1."""

_ONES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_PREFIXES = (("4", 16), ("53", 16), ("6011", 16), ("37", 15), ("34", 15), ("2221", 16), ("65", 16))


@dataclass(frozen=True, slots=True, eq=False)
class Manner:
    """How a set of callers say their numbers."""

    seed: int
    around: Sequence[tuple[str, str]]
    """What is said before and after."""
    between: Sequence[str]
    """What is said between two groups."""
    sizes: Mapping[int, Sequence[tuple[int, ...]]]
    """Length of a number -> digits of its groups."""
    oh: float
    """How often a zero is an "oh"."""
    corrected: float
    """How often a group is said again."""


TUNED_ON = Manner(
    seed=1,
    around=(
        ("My card number is", ""),
        ("Sure, it is", ""),
        ("", ""),
        ("Okay, the number on the card is", "Did you get that?"),
        ("Yes, it is", "That is it."),
        ("I would like to pay my bill with my card. The number is", "Thank you."),
        ("Right, I have my Visa here, and it says", "Is that right?"),
        ("Hang on, let me find it. So that would be", ""),
        ("The long number across the front is", "and it is in my wife's name."),
        ("Can you take it now? Here goes,", "Please hurry."),
        ("You can charge", "for the ticket."),
        ("I want to settle my balance, put it on the Mastercard,", "that should be all of it."),
        ("Give me a second, my glasses. All right,", "Could you repeat that for me?"),
        ("Use this one please,", "valid through next summer."),
        ("It starts with", "and that is the end."),
        ("My American Express reads", ""),
        ("I am calling about my order, so write this down,", "got it?"),
        ("Reading it off the plastic,", ""),
        ("No no, the other one:", "cheers."),
        ("Here you are,", ""),
        ("Could I pay the invoice over the phone? It is a Visa,", "is that going through?"),
        ("My husband's debit card, it goes", "and he is the account holder."),
        ("Do you need the front or the back? The front says", "I think that is right."),
        ("The one ending your letter, so", ""),
        ("Well, the strip reads", "and that is everything on it."),
        ("Bear with me. Ready?", "Have you got all of those?"),
        ("Let us try the company card,", "under Miller and Sons."),
        ("Mm-hm, sure thing,", "thanks a lot."),
        ("I just told your colleague, it is", "as I said."),
        ("For the copay, please use", "and send me a receipt."),
        ("", "is what I have here."),
    ),
    between=(
        *("", "", "", "um,", "and then", "okay,", "let me see,", "next is", "uh,", "followed by"),
        *("", "", "", "then", "after that", "space", "hmm,", "the next four are", "go ahead,"),
        *("", "", "", "", "right,", "moving on,", "then comes", "pause,", "er,", "and", "second bit,", "plus"),
    ),
    sizes={
        16: ((4, 4, 4, 4), (4, 4, 4, 4), (8, 8), (2,) * 8, (6, 6, 4), (3, 3, 3, 3, 4)),
        15: ((4, 6, 5), (4, 6, 5), (5, 5, 5), (3,) * 5, (7, 8)),
    },
    oh=0.5,
    corrected=0.15,
)
HELD_OUT = Manner(
    seed=20_263,
    around=(
        ("Charge the deposit to my credit card, that is", "for both nights."),
        ("Let me spell it out,", "okay?"),
        ("I have got the new one here in front of me,", "did that work?"),
        ("Oh, and the payment card,", "same billing address."),
        ("You already have my name, so just the digits,", ""),
        ("It is a gift card from my sister,", "I hope there is enough on it."),
        ("Can I give you a different one?", "Sorry for the mix-up."),
        ("Are you writing? Good.", "Read it back to me."),
        ("My daughter holds it up for me,", "the print is tiny."),
        ("Please update the card on file to", "from next month on."),
        ("", "and it expires in the spring."),
    ),
    between=("", "", "", "", "now", "go on with", "next,", "all right,", "ah,", "wait,", "so far so good,", "dash"),
    sizes={16: ((4, 4, 4, 4), (4, 4, 4, 4), (2, 2, 4, 4, 4), (5, 5, 6)), 15: ((4, 6, 5), (4, 4, 4, 3), (8, 7))},
    oh=0.5,
    corrected=0.2,
)
"""The rules were never tuned on these."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What a caller says in one go: int16 at 8 kHz as it leaves a mu-law line, and where its digits are."""

    pcm: bytes
    text: str
    digits: tuple[tuple[float, float, str], ...]
    """From, to (seconds in the sound), digits."""


@dataclass(frozen=True, slots=True)
class CardCaller:
    """One call."""

    name: str
    held_out: bool
    asked: bool
    """Whether the agent asks for the card's number first."""
    reads_back: bool
    """Whether the agent says it back."""
    turns: tuple[Turn, ...]


def voices() -> dict[str, Say]:
    """Every voice this machine has."""
    found: dict[str, Say] = {}
    found.update(_hibari_voices())
    if shutil.which("flite"):
        for name in ("slt", "rms", "awb", "kal16"):
            found[f"flite-{name}"] = partial(_by_program, ["flite", "-voice", name, "-o", "{wav}", "-t", "{text}"])
    if shutil.which("espeak-ng"):
        for name, pace in (("en-us", 140), ("en-gb+f3", 150), ("en-us+m3", 165)):
            command = ["espeak-ng", "-v", name, "-s", str(pace), "-w", "{wav}", "{text}"]
            found[f"espeak-{name}"] = partial(_by_program, command)
    return found


def _hibari_voices() -> dict[str, Say]:
    try:
        from hibari.tts import Hibari
    except ImportError:
        return {}
    hibari = Hibari()
    kinds = (("usual", 1.0, 1.0), ("slow", 0.85, 1.0), ("fast", 1.2, 1.0), ("low", 1.05, 0.92), ("high", 0.95, 1.08))
    return {f"hibari-{name}": partial(_by_hibari, hibari, speed, pitch) for name, speed, pitch in kinds}


def _by_hibari(hibari: Callable[..., Floats], speed: float, pitch: float, text: str) -> Floats:
    # Played at another rate: pitch and pace change together, as they do between people.
    sound = np.asarray(hibari(text, speed=speed, seed=1), np.float32)
    return np.asarray(soxr.resample(sound, 24_000 * pitch, RATE), np.float32)


def _by_program(command: Sequence[str], text: str) -> Floats:
    with tempfile.TemporaryDirectory(prefix="callplex-voice-") as folder:
        path = Path(folder, "said.wav")
        words = [part.format(wav=path, text=text) for part in command]
        subprocess.run(words, check=True, capture_output=True, timeout=60)
        return np.asarray(np.frombuffer(read_wav(path), np.int16) / 32_768, np.float32)


def card_callers(count: int, said_by: dict[str, Say]) -> list[CardCaller]:
    """So many callers, every second one in held-out phrasings; always the same."""
    voices_of = {TUNED_ON: sorted(said_by), HELD_OUT: sorted(said_by, reverse=True)}
    chance = {manner: Random(manner.seed) for manner in voices_of}
    callers = []
    for place in range(count):
        manner = HELD_OUT if place % 2 else TUNED_ON
        names = voices_of[manner]
        callers.append(_caller(chance[manner], manner, names[place // 2 % len(names)], said_by))
    return callers


def _caller(random: Random, manner: Manner, voice: str, said_by: dict[str, Say]) -> CardCaller:
    before, after = random.choice(manner.around)
    groups = _groups(random, card_number(random), manner)
    if random.random() < 0.12:
        # Interrupted: only the beginning is said, where a card is known to be spoken of.
        groups, after, before = groups[:-1], "", before or "My card number is"
    shares = random.choice(((len(groups),), (len(groups),), _halves(len(groups)), (1,) * len(groups)))
    line = _Line(random)
    turns, first = [], 0
    for place, share in enumerate(shares):
        parts: list[tuple[str, str]] = [(before, "")] if place == 0 else []
        for number, group in enumerate(groups[first : first + share]):
            if number or place:
                parts.append((random.choice(manner.between), ""))
            parts.append(group)
            if random.random() < manner.corrected:
                parts += [("sorry, again,", ""), group]
        first += share
        if place == len(shares) - 1:
            parts.append((after, ""))
        turns.append(_turn(random, [part for part in parts if part[0]], said_by[voice], line))
    name = f"{voice}, {len(groups)} groups in {len(shares)} turns"
    return CardCaller(name, manner is HELD_OUT, random.random() < 0.5, random.random() < 0.3, tuple(turns))


def _halves(count: int) -> tuple[int, ...]:
    return (count // 2, count - count // 2) if count > 1 else (count,)


def card_number(random: Random) -> str:
    """A number that passes Luhn's check, of a prefix and length that issuers use."""
    prefix, length = random.choice(_PREFIXES)
    body = prefix + "".join(random.choice("0123456789") for _ in range(length - 1 - len(prefix)))
    total = sum(
        int(char) * (2 - place % 2) - 9 * (place % 2 == 0 and char > "4") for place, char in enumerate(body[::-1])
    )
    return body + str(-total % 10)


def _groups(random: Random, digits: str, manner: Manner) -> list[tuple[str, str]]:
    """(as it is said, digits) of each group."""
    style = random.choice(("ones", "ones", "pairs", "doubles", "run"))
    if style == "run":
        return [(_ones(digits, "zero"), digits)]
    zero = "oh" if random.random() < manner.oh else "zero"
    spell = {"ones": _ones, "pairs": _pairs, "doubles": _doubles}[style]
    groups, first = [], 0
    for size in random.choice(manner.sizes[len(digits)]):
        part = digits[first : first + size]
        groups.append((spell(part, zero), part))
        first += size
    return groups


def _ones(digits: str, zero: str) -> str:
    return " ".join(zero if char == "0" else _ONES[int(char)] for char in digits)


def _pairs(digits: str, zero: str) -> str:
    if len(digits) % 2:
        return _ones(digits, zero)
    return " ".join(_pair(digits[place : place + 2], zero) for place in range(0, len(digits), 2))


def _pair(pair: str, zero: str) -> str:
    tens, ones = int(pair[0]), int(pair[1])
    if tens == 0:
        return _ones(pair, zero)
    if tens == 1:
        return _TEENS[ones]
    return _TENS[tens] + (f"-{_ONES[ones]}" if ones else "")


def _doubles(digits: str, zero: str) -> str:
    words, place = [], 0
    while place < len(digits):
        run = 2 if digits[place : place + 2] == 2 * digits[place] else 1
        words.append(("double " if run == 2 else "") + _ones(digits[place], zero))
        place += run
    return " ".join(words)


class _Line:
    """The caller's telephone: how loud they are, and how much noise is on the line."""

    def __init__(self, random: Random) -> None:
        self._gain = 10 ** (random.uniform(-6, 3) / 20)
        self._noise = 10 ** (random.uniform(-62, -46) / 20)
        self._chance = np.random.default_rng(random.getrandbits(32))

    def pass_on(self, sound: Floats) -> bytes:
        noise = self._noise * self._chance.standard_normal(len(sound))
        pcm = np.clip(np.rint((self._gain * sound + noise) * 32_767), -32_768, 32_767).astype(np.int16)
        return decode_ulaw(encode_ulaw(pcm.tobytes()))


def _turn(random: Random, parts: Sequence[tuple[str, str]], say: Say, line: _Line) -> Turn:
    sounds = [np.zeros(int(0.3 * RATE), np.float32)]
    spans: list[tuple[float, float, str]] = []
    at = len(sounds[0])
    for place, (text, digits) in enumerate(parts):
        sound = _levelled(_trimmed(say(text)))
        if digits:
            spans.append((at / RATE, (at + len(sound)) / RATE, digits))
        pause = np.zeros(int(random.uniform(0.08, 0.4) * RATE) if place < len(parts) - 1 else RATE // 5, np.float32)
        sounds += [sound, pause]
        at += len(sound) + len(pause)
    return Turn(line.pass_on(np.concatenate(sounds)), " ".join(text for text, _ in parts), tuple(spans))


def _trimmed(sound: Floats) -> Floats:
    loud = np.flatnonzero(np.abs(sound) > 0.01)
    return sound[loud[0] : loud[-1] + 1] if len(loud) else sound


def _levelled(sound: Floats) -> Floats:
    """At a usual loudness on the telephone: -20 dB of full scale where there is speech."""
    speech = sound[np.abs(sound) > 0.02]
    return sound * (0.1 / max(1e-3, float(np.sqrt(np.mean(speech**2))))) if len(speech) else sound
