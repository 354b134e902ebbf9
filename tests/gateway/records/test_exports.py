"""What a call looks like as text and as WebVTT."""

from __future__ import annotations

from gateway.records.exports import as_text, as_vtt
from gateway.transcript import Utterance
from tests.gateway.records.made_up import SAID, end, start


def test_text_shows_who_said_what_and_what_was_never_said() -> None:
    assert as_text(end(start()).document) == (
        "Call c1\n"
        "+15550199 -> +15550100, bank 0123456789ab, echo\n"
        "2026-09-21T14:13:20.000Z to 2026-09-21T14:14:20.000Z, caller_hangup\n"
        "\n"
        "[00:00:00.400] Agent: Thank you for calling.\n"
        "[00:00:02.500] Caller: My card was declined.\n"
        "[00:00:04.400] Agent: I can -- [unsaid: look that up.]\n"
    )


def test_vtt_has_a_cue_with_a_voice_for_all_that_was_heard() -> None:
    never = Utterance(4, "agent", "", 3661.5, 3661.5, True, unsaid="Never said.")
    key = Utterance(5, "caller", "[keypad 5] & <b>\n-->", 3661.5, 3661.5)
    document = end(start(), (*SAID, never, key)).document
    assert as_vtt(document) == (
        "WEBVTT\n\n"
        "00:00:00.400 --> 00:00:01.900\n<v Agent>Thank you for calling.\n\n"
        "00:00:02.500 --> 00:00:04.000\n<v Caller>My card was declined.\n\n"
        "00:00:04.400 --> 00:00:04.800\n<v Agent>I can\n\n"
        "01:01:01.500 --> 01:01:01.700\n<v Caller>[keypad 5] &amp; &lt;b&gt; --&gt;\n"
    )
