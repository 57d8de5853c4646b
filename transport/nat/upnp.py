"""UPnP IGD port mapping through miniupnpc, a blocking C library, in a worker thread.

Problem: the library blocks for seconds in sockets of its own, cannot be interrupted, takes answers from any machine of the LAN,
and its calls change the router after we have stopped waiting. Idea: one job at a time in one thread that may be abandoned, and
three rules for an abandoned job: it starts no further call, it removes what it mapped after it was abandoned, and a call whose
effect would last for ever (a permanent lease) is not made once it is abandoned.

Traps of the library, each handled here: `discover()` raises `Exception("Success")` when it finds nothing; every error is a bare
`Exception` with the router's words; `multicastif` can be set in the constructor alone; the object must not be used by two threads;
`selectigd()` settles for any device that answers, so its control URL must be at the gateway's address; and the library reads a URL
in its own way (it knows no `user@`, and asks the host before the first colon), so the URL must be one that can be read in one way only.

A trap that cannot be handled here: before there is a control URL to look at, the library fetches the description from any LOCATION
that a machine of the LAN answers with, and asks the status at the URLs in it. So a neighbour can make this node send a GET and a few
POSTs of his choice, to wherever this node can connect; he learns nothing of the answers, and nothing is mapped by them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

import attrs
import trio

from transport.errors import TransportError
from transport.nat.mapping_core import Grant

DISCOVER_MS: Final = 2000
"""How long the library collects answers; routers answer within a second."""
DEADLINE_S: Final = 15.0
"""For one job as a whole: discovery, description, mapping."""
DESCRIPTION: Final = "noded"
"""What people read in the router's list."""
ONLY_PERMANENT: Final = "OnlyPermanentLeasesSupported"
CONFLICT: Final = "ConflictInMappingEntry"
CONFLICT_TRIES: Final = 3
PERMANENT_RENEW_S: Final = 3600.0
"""A permanent mapping is told as one of an hour, so that it is renewed after a restart of the router."""

T = TypeVar("T")


class UpnpFailed(TransportError):
    """The gateway could not be asked by UPnP, or refused."""


class Igd(Protocol):
    """What is used of `miniupnpc.UPnP`."""

    lanaddr: str

    def discover(self) -> int:
        """Number of devices found."""

    def selectigd(self) -> str:
        """Choose one and return its control URL."""

    def externalipaddress(self) -> str:
        """The external address."""

    def addportmapping(  # noqa: PLR0917 - the library takes no keywords
        self,
        external: int,
        protocol: str,
        host: str,
        internal: int,
        description: str,
        remote: str,
        lease: int,
        /,
    ) -> bool:
        """Map, or raise."""

    def deleteportmapping(self, external: int, protocol: str, /) -> bool:
        """Remove, or raise."""

    def getspecificportmapping(self, external: int, protocol: str, /) -> object:
        """The entry, or None."""


def load_igd(source: str) -> Igd:
    """A fresh object of the library, sending from `source` ("" for any).

    Raises:
        UpnpFailed: the library is not installed.
    """
    try:
        import miniupnpc
    except ImportError as error:
        raise UpnpFailed(
            "UPnP needs a library that is not installed", hint="pip install 'noded[upnp]'"
        ) from error
    options: dict[str, Any] = {"discoverdelay": DISCOVER_MS}
    if source:
        options["multicastif"] = source
    igd: Igd = miniupnpc.UPnP(**options)
    return igd


@attrs.define
class _Job:
    """Shared with the thread; one flag, written by one side only."""

    abandoned: bool = False


class Upnp:
    """One router by UPnP. Methods are called one at a time."""

    def __init__(
        self, gateway: str, *, source: str = "", load: Callable[[str], Igd] = load_igd
    ) -> None:
        """Nothing is sent yet.

        Args:
            gateway: address of the only device that is believed.
            source: our address on its network; "" for any.
            load: makes the library's object.
        """
        self._gateway = gateway
        self._source = source
        self._load = load
        self._igd: Igd | None = None
        self._one = trio.CapacityLimiter(1)  # an abandoned job keeps it until it ends

    async def map(self, internal_port: int, external_port: int, lifetime_s: int) -> Grant:
        """Map a TCP port, or renew its mapping.

        When cancelled, a mapping that is made all the same is removed by the thread, as far as the router lets it.

        Raises:
            UpnpFailed: with the reason.
        """

        def work(job: _Job) -> Grant:
            igd = self._find(job)
            host = igd.externalipaddress()
            port, lease = _add(igd, job, internal_port, external_port, lifetime_s)
            if job.abandoned:
                igd.deleteportmapping(port, "TCP")
                raise UpnpFailed("abandoned")
            return Grant(host, port, lease or PERMANENT_RENEW_S)

        try:
            return await self._run(work)
        except UpnpFailed:
            self._igd = None  # look for the device again: it may have restarted on another port
            raise

    async def release(self, external_port: int) -> None:
        """Remove a mapping. When cancelled the thread still tries.

        Raises:
            UpnpFailed: with the reason.
        """
        # Its own job, never abandoned: finishing does no harm, stopping halfway would leave the port open.
        await self._run(lambda _: self._find(_Job()).deleteportmapping(external_port, "TCP"))

    async def check(self, external_port: int) -> tuple[str, bool]:
        """(external address, whether the router still has the mapping).

        Raises:
            UpnpFailed: with the reason.
        """

        def work(job: _Job) -> tuple[str, bool]:
            igd = self._find(job)
            host = igd.externalipaddress()
            return host, igd.getspecificportmapping(external_port, "TCP") is not None

        return await self._run(work)

    def _find(self, job: _Job) -> Igd:
        if self._igd is not None:
            return self._igd
        igd = self._load(self._source)
        try:
            found = igd.discover()
        except Exception as error:
            if str(error) == "Success":  # errno 0: it means that nothing answered
                found = 0
            else:
                raise
        if not found:
            raise UpnpFailed("no device answers by UPnP")
        if job.abandoned:
            raise UpnpFailed("abandoned")
        if not _is_at(igd.selectigd(), self._gateway):
            raise UpnpFailed("what answers by UPnP is not the gateway")
        if job.abandoned:
            raise UpnpFailed("abandoned")
        self._igd = igd
        return igd

    async def _run(self, work: Callable[[_Job], T]) -> T:
        job = _Job()
        try:
            with trio.fail_after(DEADLINE_S):
                return await trio.to_thread.run_sync(
                    work, job, abandon_on_cancel=True, limiter=self._one
                )
        except trio.TooSlowError:
            raise UpnpFailed("the gateway takes too long to answer by UPnP") from None
        except UpnpFailed:
            raise
        except Exception as error:
            raise UpnpFailed(f"the gateway refused: {_printable(error)}") from error
        finally:
            job.abandoned = True


def _add(igd: Igd, job: _Job, internal: int, external: int, lease_s: int) -> tuple[int, int]:
    """(external port, lease) of the mapping made; lease 0 is permanent."""
    lease = lease_s
    for attempt in range(CONFLICT_TRIES + 1):
        if job.abandoned:
            raise UpnpFailed("abandoned")
        try:
            igd.addportmapping(external, "TCP", igd.lanaddr, internal, DESCRIPTION, "", lease)
        except Exception as error:
            if ONLY_PERMANENT in str(error) and lease:
                lease = 0
            elif CONFLICT in str(error) and attempt < CONFLICT_TRIES:
                # Another machine has it. Ports derived from ours: no chance needed, and a renewal finds the same.
                external = 1024 + (external * 31 + 7919) % 64_000
            else:
                raise
        else:
            return external, lease
    raise UpnpFailed("every port that was tried belongs to another machine")


def _is_at(url_untrusted: object, gateway: str) -> bool:
    """Whether the library asks `gateway` at this URL: http://GATEWAY[:port][/path], without anything that two parsers read in two ways."""
    host = re.escape(f"[{gateway}]" if ":" in gateway else gateway)
    pattern = rf"http://{host}(:[0-9]{{1,5}})?(/[^\s@\\]*)?"
    return isinstance(url_untrusted, str) and re.fullmatch(pattern, url_untrusted) is not None


def _printable(error: Exception) -> str:
    """The router's words, short and harmless."""
    text = "".join(c if c.isascii() and c.isprintable() else "?" for c in str(error)[:80])
    return text or type(error).__name__
