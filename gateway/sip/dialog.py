"""Dialogs: what two ends remember of each other, and requests inside of one (RFC 3261, section 12).

Owns tags, sequence numbers, the route set and the remote target. Knows nothing of what the requests do.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.sip.fields import NameAddr, parse_name_addr
from gateway.sip.message import Headers, Request, Response
from gateway.sip.uri import (
    Addr,
    Transport,
    Uri,
    address_of,
    bare_host,
    default_port,
    is_private,
    other_family,
    parse_uri,
)

MAX_FORWARDS = "70"
MAX_ROUTES = 32
"""Hops of a route set that are kept."""


@dataclass(slots=True)
class Dialog:
    """One of ours; sequence numbers and the target change, the rest stays."""

    call_id: str
    local: NameAddr
    """We, tag included."""
    remote: NameAddr
    target: Uri
    """The peer's Contact."""
    routes: tuple[NameAddr, ...]
    flow: Addr
    """Where the peer's messages last came from."""
    local_cseq: int
    remote_cseq: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Call-ID and our tag: what a request inside the dialog is found by."""
        return (self.call_id, self.local.tag)

    def in_order(self, number: int) -> bool:
        """Whether a request comes after all before it (section 12.2.2); remembers its number."""
        if self.remote_cseq is not None and number <= self.remote_cseq:
            return False
        self.remote_cseq = number
        return True

    def request(self, method: str, cseq: int | None = None) -> Request:
        """A request with the next sequence number, or `cseq` for an ACK; Via and Contact are still missing."""
        if cseq is None:
            self.local_cseq += 1
            cseq = self.local_cseq
        uri, routes = self._way()
        headers = Headers([("Route", str(route)) for route in routes])
        headers.add("Max-Forwards", MAX_FORWARDS)
        headers.add("From", str(self.local))
        headers.add("To", str(self.remote))
        headers.add("Call-ID", self.call_id)
        headers.add("CSeq", f"{cseq} {method}")
        return Request(headers, method=method, uri=str(uri.without_headers()))

    def _way(self) -> tuple[Uri, list[NameAddr]]:
        """Request-URI and Route fields: loose, or strict for a peer of RFC 2543 (section 12.2.1.1)."""
        if not self.routes or self.routes[0].uri.param("lr") is not None:
            return self.target, list(self.routes)
        return self.routes[0].uri, [*self.routes[1:], NameAddr(self.target)]

    def next_hop(self) -> Addr:
        """Where the next request goes; raises SipError when the peer's address says nothing we can use.

        Where the peer's messages came from, if its own address cannot be reached from elsewhere, or from a socket
        of the kind of address that they came to, or if a connection from that host is open; else the first route or
        the target. A peer on a connection that names no transport means that of the connection.
        """
        uri, flow = self.routes[0].uri if self.routes else self.target, self.flow
        hop = address_of(uri)
        if flow.transport != "udp" and hop.transport == "udp" and uri.param("transport") is None:
            hop = Addr(hop.host, uri.port or default_port(flow.transport), flow.transport)
        if flow.transport != "udp" and (hop.host, hop.transport) == (flow.host, flow.transport):
            return flow
        if hop.host != flow.host and is_private(hop.host) and not is_private(flow.host):
            return flow
        if hop.transport == flow.transport == "udp" and other_family(hop.host, flow.host):
            return flow
        return hop

    def refresh(self, message: Request | Response, addr: Addr | None) -> None:
        """A re-INVITE or UPDATE, or the 2xx to one, renews the target (section 12.2.1.2)."""
        contact = message.contact
        if contact is not None and contact.uri.is_sip:
            self.target = contact.uri
        if addr is not None:
            self.flow = addr


def routes_of(message: Request | Response) -> tuple[NameAddr, ...]:
    """The Record-Route of a message in its order; raises SipError."""
    return tuple(parse_name_addr(value) for value in message.headers.items("Record-Route")[:MAX_ROUTES])


def dialog_as_server(invite: Request, tag: str, addr: Addr) -> Dialog:
    """What the callee remembers (section 12.1.1); a caller without Contact is reached at its From (RFC 2543)."""
    contact = invite.contact
    target = contact.uri if contact is not None else invite.from_.uri
    return Dialog(
        invite.call_id,
        invite.to.with_tag(tag),
        invite.from_,
        target,
        routes_of(invite),
        addr,
        local_cseq=0,
        remote_cseq=invite.cseq.number,
    )


def dialog_as_client(invite: Request, response: Response, addr: Addr) -> Dialog:
    """What the caller remembers (section 12.1.2)."""
    contact = response.contact
    return Dialog(
        invite.call_id,
        invite.from_,
        response.to,
        contact.uri if contact is not None else parse_uri(invite.uri),
        tuple(reversed(routes_of(response))),
        addr,
        local_cseq=invite.cseq.number,
    )


def contact_uri(user: str, host: str, port: int, transport: Transport, secure: bool) -> Uri:
    """Ours, as peers are to reach us inside a dialog; `secure` for a request to a sips URI (section 12.1.1)."""
    if secure:
        return Uri("sips", user, host=host, port=port)
    params = () if transport == "udp" else (("transport", transport),)
    return Uri("sip", user, host=host, port=port, params=params)


def same_host(one: Uri, other: Uri) -> bool:
    """Whether two URIs name the same host."""
    return bare_host(one.host).lower() == bare_host(other.host).lower()
