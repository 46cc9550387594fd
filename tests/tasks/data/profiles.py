"""Color profiles (ICC.1) for images of tests."""

import struct

_D50 = (0.9642, 1.0, 0.8249)
_DISPLAY_P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
_ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))


def profile(
    space: bytes, tags: dict[bytes, bytes], *, kind: bytes = b"mntr", target: bytes = b"XYZ "
) -> bytes:
    """Return a profile.

    Args:
        space: The colors that it describes: ``RGB ``, ``GRAY`` or ``CMYK``.
        tags: Its tags by name.
        kind: Its class.
        target: The colors that it converts to.
    """
    offset, table, bodies = 132 + 12 * len(tags), b"", b""
    for name, body in tags.items():
        table += struct.pack(">4sII", name, offset + len(bodies), len(body))
        bodies += body + bytes(-len(body) % 4)
    header = struct.pack(">I4sI4s4s4s", offset + len(bodies), b"", 0x2100000, kind, space, target)
    header += bytes(12) + b"acsp" + bytes(28) + _numbers(*_D50) + bytes(48)
    return header + struct.pack(">I", len(tags)) + table + bodies


def rgb_profile(colorants: tuple[tuple[float, ...], ...], gamma: float = 2.2) -> bytes:
    """Return the profile of a monitor by its colorants' XYZ."""
    names = zip((b"r", b"g", b"b"), colorants, strict=True)
    tags = {b"wtpt": b"XYZ " + bytes(4) + _numbers(*_D50)}
    for name, values in names:
        tags[name + b"XYZ"] = b"XYZ " + bytes(4) + _numbers(*values)
        tags[name + b"TRC"] = _gamma(gamma)
    return profile(b"RGB ", tags)


def gray_profile(gamma: float) -> bytes:
    """Return the profile of gray images."""
    white = b"XYZ " + bytes(4) + _numbers(*_D50)
    return profile(b"GRAY", {b"wtpt": white, b"kTRC": _gamma(gamma)})


def cmyk_profile() -> bytes:
    """Return a rough profile of a printer."""
    levels = [bits >> shift & 1 for bits in range(16) for shift in (3, 2, 1, 0)]
    colors = [levels[start : start + 4] for start in range(0, 64, 4)]
    lab = [
        (255 - 60 * (c + m) - 20 * y - 100 * k, 128 - 40 * c + 70 * m, 128 - 50 * c + 90 * y)
        for c, m, y, k in colors
    ]
    cube = bytes(max(0, min(255, value)) for color in lab for value in color)
    identity = _numbers(1, 0, 0, 0, 1, 0, 0, 0, 1)
    ramps = bytes(range(256))
    table = b"mft1" + bytes(4) + b"\4\3\2\0" + identity + ramps * 4 + cube + ramps * 3
    return profile(b"CMYK", {b"A2B0": table}, kind=b"prtr", target=b"Lab ")


def _numbers(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _gamma(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


DISPLAY_P3, ADOBE_RGB = rgb_profile(_DISPLAY_P3), rgb_profile(_ADOBE_RGB)
