"""Requests that ride on a call: REFER with its NOTIFYs, keys by INFO (RFC 3515, RFC 6086).

Owns our transfers and what the peer tells of them. A transfer that falls silent is given up, so that the
application always hears a final Transferred while the call lives.
"""

from __future__ import annotations

import re

from gateway.sip.bodies import read_digits, write_digit
from gateway.sip.call import CallState, SipCall
from gateway.sip.core import Core
from gateway.sip.errors import SipError
from gateway.sip.events import InfoDigits, Transferred
from gateway.sip.fields import get_param, parse_number, parse_params
from gateway.sip.message import Request, Response
from gateway.sip.session import Sessions
from gateway.sip.transaction import ServerTransaction
from gateway.sip.uri import Uri

TRANSFER_SECONDS = 60.0
"""How long we wait for the next word about a transfer (RFC 3515, section 2.4.4, leaves the time to us)."""
FIRST_WORD_SECONDS = 5.0
"""How long we wait for the first one, which an accepted REFER is followed by at once (RFC 3515, section 2.4.4): a
peer that says nothing will not, and its caller listens to silence."""

_SIPFRAG = re.compile(rb"SIP/2\.0[ \t]+([1-6][0-9]{2})(?:[ \t]+([^\r\n]*))?", re.IGNORECASE)


class Transfers:
    """What both ends ask of each other while they talk."""

    def __init__(self, core: Core, sessions: Sessions) -> None:
        self._core = core
        self._sessions = sessions

    def refer(self, call: SipCall, target: Uri, now: float) -> bool:
        """Ask the peer to call `target`; False when the call is not up or a transfer is under way."""
        if call.state is not CallState.ESTABLISHED or call.dialog is None or call.transfer_limit is not None:
            return False
        fields = [("Refer-To", f"<{target}>"), ("Referred-By", f"<{call.local.uri.without_headers()}>")]
        transaction = self._core.ask(
            call, "REFER", lambda response, then: self._heard(call, response, then), now, fields
        )
        call.transfer = 0 if call.transfer is None else transaction.request.cseq.number
        call.transfer_told = False
        self._wait(call, now, TRANSFER_SECONDS)
        return True

    def _wait(self, call: SipCall, now: float, seconds: float) -> None:
        if call.transfer_limit is not None:
            call.transfer_limit.cancel()
        call.transfer_limit = self._core.timers.at(now + seconds, lambda then: self._give_up(call))

    def _give_up(self, call: SipCall) -> None:
        call.transfer_unsettled = True
        self._tell(call, 408, "Request Timeout", final=True)

    def _heard(self, call: SipCall, response: Response, now: float) -> None:
        if response.code < 200 or call.ended or call.transfer_limit is None:
            return
        if response.code >= 300:
            self._tell(call, response.code, response.reason, final=True)
            self._sessions.lost(call, response, now)
        elif not call.transfer_told:
            self._wait(call, now, FIRST_WORD_SECONDS)

    def _tell(self, call: SipCall, code: int, reason: str, final: bool) -> None:
        if final and call.transfer_limit is not None:
            call.transfer_limit.cancel()
            call.transfer_limit = None
        self._core.emit(Transferred(call, code, reason, final))

    def notify(self, call: SipCall, transaction: ServerTransaction, now: float) -> None:
        """How the peer's call to the target goes; raises SipError: 481 or 489 for what we did not subscribe to."""
        request = transaction.request
        event, semicolon, params = request.headers.first("Event").partition(";")
        if event.strip().lower() != "refer":
            raise SipError("no such event is subscribed to", 489, "Bad Event", (("Allow-Events", "refer"),))
        over = request.headers.first("Subscription-State").strip().lower().startswith("terminated")
        named = get_param(parse_params(semicolon + params), "id")
        if call.transfer_limit is None or not _newest(call, named):
            if over and not named:  # the last word of the one that was given up: what comes now is of the next
                call.transfer_unsettled = False
            raise SipError("no such transfer is under way", 481, "Subscription Does Not Exist")
        self._core.respond(transaction, 200, now)
        code, reason = read_sipfrag(request)
        call.transfer_told = True
        if code >= 200:
            self._tell(call, code, reason, final=True)
        elif over:
            self._tell(call, 480, "the transfer ended without a result", final=True)
        else:
            self._wait(call, now, TRANSFER_SECONDS)
            if code:
                self._tell(call, code, reason, final=False)

    def info(self, call: SipCall, transaction: ServerTransaction, now: float) -> None:
        """Keys; an empty INFO is a keep-alive. Raises SipError: 415 for other content, 469 for a package."""
        request = transaction.request
        if request.headers.first("Info-Package").strip():
            raise SipError("no INFO package is known here", 469, "Bad Info Package", (("Recv-Info", ""),))
        digits, milliseconds = read_digits(request) if request.body.strip() else ("", 0)
        self._core.respond(transaction, 200, now)
        if digits:
            self._core.emit(InfoDigits(call, digits, milliseconds))

    def send_digit(self, call: SipCall, digit: str, milliseconds: int, now: float) -> bool:
        """Press a key by INFO; False when the call is not up."""
        content = write_digit(digit, milliseconds)
        if call.state is not CallState.ESTABLISHED:
            return False
        self._core.ask(
            call,
            "INFO",
            lambda response, then: self._heard_info(call, response, then),
            now,
            content=("application/dtmf-relay", content),
        )
        return True

    def _heard_info(self, call: SipCall, response: Response, now: float) -> None:
        if response.code >= 300 and not call.ended:
            self._sessions.lost(call, response, now)


def _newest(call: SipCall, named: str | None) -> bool:
    """Whether a NOTIFY tells of the newest REFER: `named` is its CSeq from the second on (RFC 3515, section 2.4.6).

    A REFER that was challenged was sent again under a higher one.
    """
    number = parse_number(named or "")
    if number is None:
        return not call.transfer_unsettled
    return number >= (call.transfer or 0)


def read_sipfrag(request: Request) -> tuple[int, str]:
    """The status line of a message/sipfrag (RFC 3420); code 0 when there is none."""
    found = _SIPFRAG.match(request.body.lstrip())
    if found is None:
        return 0, ""
    return int(found[1]), (found[2] or b"").decode("utf-8", "replace").strip()
