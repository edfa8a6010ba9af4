"""Bytes over HTTP: with timeouts, from any byte on where the host can, and a connection that is used again."""

import os
from functools import cache
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError

from datamodules.storage.limits import RefusedError, UnavailableError

REDIRECTS = urllib3.Retry(connect=0, read=0, status=0, other=0, redirect=5, respect_retry_after_header=False)
OK, PARTIAL, TIMEOUT, TOO_MANY = 200, 206, 408, 429  # HTTP status


class WebStream:
    """The body of one answer.

    Args:
        url: http or https, with a user and password if need be.
        timeout: seconds for the connection, and for the next bytes.
        start: first byte that is wanted; a host that knows no ranges sends from the beginning all the same.
        stop: end of what is wanted, None for the end of the file.

    Raises:
        RefusedError: there is no such file for us.
        OSError: the host does not answer, or cannot now.
    """

    def __init__(self, url: str, timeout: float, start: int = 0, stop: int | None = None) -> None:
        parts = urlsplit(url)
        headers = {"Accept-Encoding": "identity"}
        if start or stop is not None:
            headers["Range"] = f"bytes={start}-" if stop is None else f"bytes={start}-{stop - 1}"
        if parts.username:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers |= urllib3.make_headers(basic_auth=login)
        try:
            self.response = connections(os.getpid(), proxy_for(url)).request(
                "GET",
                url,
                headers=headers,
                preload_content=False,
                retries=REDIRECTS,
                timeout=urllib3.Timeout(connect=timeout, read=timeout),
            )
        except HTTPError as error:
            raise OSError(reason(error)) from None
        status = self.response.status
        if status not in (OK, PARTIAL):
            self.response.close()
            answer = f"HTTP status {status} {self.response.reason or ''}".strip()
            if status >= 500 or status in (TIMEOUT, TOO_MANY):
                raise UnavailableError(answer, retry_after(self.response))
            raise RefusedError(answer)
        self.ranges = status == PARTIAL
        self.place = start if self.ranges else 0

    def read(self, size: int) -> bytes:
        """Return some bytes, at most `size`, none at the end."""
        try:
            return self.response.read1(size)
        except HTTPError as error:
            raise OSError(reason(error)) from None

    def close(self) -> None:
        """Drop the connection, unless the answer was read to its end: then the next one may use it."""
        if self.response.length_remaining == 0:
            self.response.drain_conn()  # of nothing: it takes note of the end
            self.response.release_conn()
        else:
            self.response.close()


@cache
def connections(process: int, proxy: str | None) -> urllib3.PoolManager:
    """Return the connections of this process, one to a host: a forked one must not speak on its parent's."""
    if proxy:
        return urllib3.ProxyManager(proxy, maxsize=1)
    return urllib3.PoolManager(maxsize=1)


def proxy_for(url: str) -> str | None:
    """Return the proxy that the environment names for a URL (http_proxy, no_proxy and so on), as curl takes it."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def retry_after(response: urllib3.BaseHTTPResponse) -> float | None:
    """Return the seconds that an answer asks to wait for before the next try, if it does."""
    try:
        return REDIRECTS.get_retry_after(response)
    except HTTPError:  # the header makes no sense
        return None


def reason(error: HTTPError) -> str:
    """Return what happened, without the names of objects that urllib3 puts before it."""
    cause = getattr(error, "reason", None) or error
    return str(cause).rpartition("): ")[2] or type(cause).__name__
