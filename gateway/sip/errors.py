"""The one error a SIP peer can cause. Our own mistakes are ValueError, like anywhere else."""

from __future__ import annotations


class SipError(Exception):
    """The peer broke SIP or SDP; a request that did so is answered with `code`.

    The message is one of a fixed set, nothing of it the peer's own words: faults are counted by it.
    """

    def __init__(
        self, message: str, code: int = 400, reason: str = "", headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.headers = headers
        """Fields the answer must carry: Unsupported, Allow, Accept, Min-SE, Warning ..."""
