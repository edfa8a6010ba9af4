"""PNGs against the checksums that they carry: a decoder would print what is wrong, and not say of which image."""

import zlib

from datamodules.transforms.headers import START_OF_PNG
from mambaeye.errors import InputError

LAST = b"IEND"


def require_whole_png(data: bytes, what: str) -> None:
    """Refuse a PNG that ends early or has damage inside; other formats pass. Format: RFC 2083, section 3.

    Args:
        data: the file's bytes.
        what: names the image in a message.

    Raises:
        InputError: it is refused.
    """
    if not data.startswith(START_OF_PNG):
        return
    at, kind = len(START_OF_PNG), b""
    view = memoryview(data)
    while kind != LAST:
        length, kind = int.from_bytes(view[at : at + 4]), bytes(view[at + 4 : at + 8])
        end = at + 8 + length
        if end + 4 > len(data):
            raise InputError(f"the image of {what} does not decode (it ends early): replace it or leave it out")
        # a chunk whose name begins with a small letter can be done without
        if kind[:1].isupper() and zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4]):
            raise InputError(
                f"the image of {what} does not decode (its {kind.decode('latin-1')!a} is damaged): replace it or leave "
                f"it out"
            )
        at = end + 4
