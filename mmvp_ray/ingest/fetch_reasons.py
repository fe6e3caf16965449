"""Why a URL did not become an image: the closed list of reasons, and the error that carries one through img2dataset."""

from __future__ import annotations

from enum import StrEnum

from mmvp_ray.errors import MmvpError
from mmvp_ray.images.reasons import one_line


class FetchReason(StrEnum):
    """Every reason that a row of OUT/urls can have; the value is what the table holds."""

    BAD_URL = "bad_url"
    """No URL that can be asked: no host, user names in it, characters that readers of URLs disagree about."""
    SCHEME_REFUSED = "scheme_refused"
    """Neither http nor https, here or after a redirect."""
    PORT_REFUSED = "port_refused"
    """A port below 1024 that is not 80 or 443."""
    ADDRESS_REFUSED = "address_refused"
    """The host has no address outside private, loopback, link-local and other special networks."""
    DOMAIN_DENIED = "domain_denied"
    """A redirect into a domain of the deny list."""
    NAME_NOT_FOUND = "name_not_found"
    """The host's name has no address, or its look-up failed or took too long."""
    CONNECT_FAILED = "connect_failed"
    """No connection: refused, unreachable, or none within the time limit."""
    CONNECTION_LOST = "connection_lost"
    """The connection broke before the answer's head was there."""
    TLS_FAILED = "tls_failed"
    """The certificate is not valid for the name, or TLS could not be spoken."""
    TIMED_OUT = "timed_out"
    """Nothing came for longer than the read limit."""
    TOO_SLOW = "too_slow"
    """Something came all the time, but not all of it within the total limit."""
    HOST_GIVEN_UP = "host_given_up"
    """Not asked: too many connections to this host had failed or been told to wait, one after the other, or it asks for a long wait."""
    TOO_MANY_REDIRECTS = "too_many_redirects"
    """More hops than allowed, a loop included."""
    NOT_FOUND = "not_found"
    """404 or 410."""
    FORBIDDEN = "forbidden"
    """401, 402, 403, 407 or 451."""
    TOO_MANY_REQUESTS = "too_many_requests"
    """429, at the last attempt or with a longer Retry-After than is waited for."""
    SERVER_ERROR = "server_error"
    """500 or above, at the last attempt."""
    OTHER_STATUS = "other_status"
    """Any other status but 200 and 203."""
    BAD_RESPONSE = "bad_response"
    """No HTTP, a redirect without a place, or a head beyond every limit."""
    OPTED_OUT = "opted_out"
    """The answer's headers reserve the image (X-Robots-Tag, TDM-Reservation)."""
    TOO_MANY_BYTES = "too_many_bytes"
    """The body is longer than allowed, by its header or when it was read."""
    TRUNCATED = "truncated"
    """The body ends before its announced length."""
    EMPTY = "empty"
    """A body without a byte."""
    HTML = "html"
    """A web page in place of the image."""
    NOT_AN_IMAGE = "not_an_image"
    """Bytes that begin like no image format that is known here."""
    FORMAT_NOT_SUPPORTED = "format_not_supported"
    """A known format that mmvp-ray does not decode, such as SVG."""
    TOO_MANY_PIXELS = "too_many_pixels"
    """The image's header claims more pixels than are decoded."""
    CORRUPT = "corrupt"
    """An image whose header (or, where images are resized, whose data) cannot be read."""
    UNEXPECTED = "unexpected"
    """Something else went wrong; its detail says what."""


class FetchError(MmvpError):
    """A URL that gave no image.

    img2dataset keeps str(error) of what its urlopen raises, so the message begins with the reason's value.

    Args:
        reason: Why.
        detail: What was found; made one printable line.
        may_pass: Whether another attempt may help.
        retry_after_seconds: What the server asked for, if it did.
    """

    def __init__(
        self, reason: FetchReason, detail: str, *, may_pass: bool = False, retry_after_seconds: float | None = None
    ) -> None:
        self.reason = reason
        self.detail = one_line(detail)
        self.may_pass = may_pass
        self.retry_after_seconds = retry_after_seconds
        super().__init__(message(reason, detail))


def message(reason: FetchReason, detail: str) -> str:
    """The text that carries a reason and a detail."""
    return f"{reason}: {one_line(detail)}"


def split_message(text: str) -> tuple[FetchReason, str]:
    """The reason and the detail of a message; what is none of ours is UNEXPECTED, with all of it as the detail."""
    head, found, detail = text.partition(": ")
    if found and head in FetchReason.__members__.values():
        return FetchReason(head), detail
    if "X-Robots-Tag" in text:
        return FetchReason.OPTED_OUT, one_line(text)
    return FetchReason.UNEXPECTED, one_line(text)
