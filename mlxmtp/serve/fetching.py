"""Files at addresses that requests name, where the operator allows it: from public addresses only, and within bounds.

A name is looked up once, and what is connected to is the address that was judged; so is every redirection.
"""

import socket
import ssl
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from threading import Timer
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from mlxmtp.serve.fields import Refused

MOST_BYTES = 20 * 2**20
_ALL_BYTES = 5 * MOST_BYTES  # of a request: they are in memory together
_SECONDS = 20.0
_REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}
_AS_THEY_ARE = "%!#$&'()*+,/:;=?@[]~"  # characters of addresses; others, as letters with accents, are escaped
_TRANSLATED = IPv6Network("64:ff9b::/96")  # IPv4 behind a translator, in the last four bytes


class Fetcher:
    """Fetches the files of one request."""

    def __init__(self) -> None:
        self._left = _ALL_BYTES

    def __call__(self, url: str, path: str) -> bytes:
        """Return the file at an address, which the field `path` of the request names. Raises Refused."""
        data = fetch(url, path)
        self._left -= len(data)
        if self._left < 0:
            told = f"{path}: with it the files of the request have more than {_ALL_BYTES >> 20} MB: send fewer."
            raise Refused(told, path, status=413)
        return data


def fetch(url: str, path: str) -> bytes:
    """Return the file at an address, which the field `path` of a request names. Raises Refused."""
    try:
        for _ in range(1 + _REDIRECTS):
            found = _ask(url, path)
            if isinstance(found, bytes):
                return found
            url = urljoin(url, found)
    except (OSError, HTTPException, ValueError) as error:
        raise Refused(
            f"{path}: the address cannot be fetched ({str(error) or type(error).__name__:.100}).", path
        ) from None
    raise Refused(f"{path}: the address leads from one to another more than {_REDIRECTS} times.", path)


def _ask(url: str, path: str) -> bytes | str:
    """Return what is there, or the address to which it leads."""
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname or parts.username is not None:
        raise Refused(f"{path}: only http and https addresses without a password are fetched.", path)
    port = _PORTS[parts.scheme]
    if parts.port not in (None, port):
        raise Refused(f"{path}: only the usual ports of http and https are asked.", path)
    with closing(_Connection(parts, _public_address(parts.hostname, port, path), port)) as connection:
        end = Timer(_SECONDS, connection.break_off)  # what comes drop by drop never runs into a socket's own limit
        end.start()
        try:
            where = parts._replace(scheme="", netloc="", fragment="", path=parts.path or "/").geturl()
            connection.request("GET", quote(where, _AS_THEY_ARE), headers={"User-Agent": "mlxmtp", "Accept": "*/*"})
            with connection.getresponse() as response:
                location = response.headers.get("Location")
                if response.status in (301, 302, 303, 307, 308) and location:
                    return location.encode("latin-1").decode("utf-8", "replace")  # as which http.client reads heads
                if response.status != 200:
                    raise Refused(f"{path}: the address answers with status {response.status}.", path)
                data = response.read(MOST_BYTES + 1)
                if connection.broken_off:  # without a length the end of the connection is that of the file
                    raise TimeoutError(f"it took more than {_SECONDS:.0f} seconds")
        finally:
            end.cancel()
    if len(data) > MOST_BYTES:
        raise Refused(f"{path}: what is there is larger than {MOST_BYTES >> 20} MB.", path)
    return data


def _public_address(host: str, port: int, path: str) -> str:
    """Return an address of a name. Raises Refused if one of them is not of the open internet, OSError without any."""
    found = [str(one[4][0]) for one in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not all(map(_is_public, found)):
        raise Refused(
            f"{path}: '{host}' is an address of this machine or its network, from which nothing is fetched.", path
        )
    return found[0]


def _is_public(address: str) -> bool:
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        translated = IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _TRANSLATED else None
        inner = translated or ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None:
            return _is_public(str(inner))
    return ip.is_global and not ip.is_multicast


class _Connection(HTTPConnection):
    """A connection to the `address` that was judged, under the name that was asked for."""

    def __init__(self, parts: SplitResult, address: str, port: int) -> None:
        self.default_port = port  # which the header Host leaves out
        super().__init__(parts.hostname or "", port, timeout=_SECONDS)
        self._address, self._secure = address, parts.scheme == "https"
        self._connected: socket.socket | None = None  # `sock` is None again before a body without a length is read
        self.broken_off = False

    def connect(self) -> None:
        self.sock = self._connected = socket.create_connection((self._address, self.port), self.timeout)
        if self._secure:
            context = ssl.create_default_context()
            secured = context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock = self._connected = secured  # before the handshake, which may have to be broken off, too
            secured.do_handshake()

    def break_off(self) -> None:
        """End it from another thread: what waits for it fails."""
        self.broken_off = True
        if self._connected is not None:
            with suppress(OSError):  # it has ended by itself
                self._connected.shutdown(socket.SHUT_RDWR)
