"""Plain values as bytes: what may pass between a program under test, its judge and the harness.

Pickle would run code on the reading side and JSON loses tuples, sets, bytes and int keys, so values travel in a small
tagged format with an exact round trip: None, bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset,
range, and of the standard library fractions, decimals and dates without a time zone. The reader only ever builds these
exact types: a subclass with a dishonest `__eq__` arrives as the plain value it holds. Iterators arrive as iterators
over a list. Anything else is *opaque*: the sender keeps it and sends a reference (int or str), which the receiver can
hand back but cannot look into.

The module imports nothing but `posix`, a built-in: the program's process starts in ten milliseconds because of that.
Left out: shared references (a list that appears twice arrives as two lists) and cycles (refused by depth).
"""

import posix


def _date(value):
    return value.year, value.month, value.day


def _time(value):
    return value.hour, value.minute, value.second, value.microsecond


STANDARD = {  # type -> what it is built from, ints and texts
    "fractions.Fraction": lambda value: (value.numerator, value.denominator),
    "decimal.Decimal": lambda value: (str(value),),
    "datetime.date": _date,
    "datetime.datetime": lambda value: (*_date(value), *_time(value)),
    "datetime.time": _time,
    "datetime.timedelta": lambda value: (value.days, value.seconds, value.microseconds),
}
MAX_BYTES = 1 << 22
MAX_DEPTH = 100


class WireError(ValueError):
    """A value that cannot travel (too big, too deep, of an unknown type) or bytes that are not a value."""


class Closed(Exception):
    """The other end closed the pipe, or never finished its frame."""


def _refuse(value):
    raise WireError(f"a value of type {type(value).__name__} cannot be sent")


def encode(value, opaque=_refuse, limit=MAX_BYTES):
    """Bytes of `value`; `opaque(value)` gives the reference (int or str) of a value that has no plain form.

    Raises:
        WireError: more than `limit` bytes, nested deeper than MAX_DEPTH, or refused by `opaque`.
    """
    parts: list[bytes] = []
    room = [limit]
    _encode(value, parts, room, opaque, 0)
    return b"".join(parts)


def _put(parts, room, tag, payload):
    room[0] -= len(payload) + 8
    if room[0] < 0:
        raise WireError("the value is too large")
    parts.append(b"%s%d:%s" % (tag, len(payload), payload))


def _encode(value, parts, room, opaque, depth):
    """Append the bytes of one value. Base-class methods are called by name, so that overridden ones are not asked."""
    if depth > MAX_DEPTH:
        raise WireError("the value is nested too deeply")
    if value is None:
        _put(parts, room, b"N", b"")
    elif value is True or value is False:
        _put(parts, room, b"B", b"1" if value else b"0")
    elif isinstance(value, int):
        _put(parts, room, b"I", b"%x" % int.__add__(value, 0))
    elif isinstance(value, float):
        _put(parts, room, b"F", float.hex(value).encode())
    elif isinstance(value, complex):
        pair = (complex.real.__get__(value), complex.imag.__get__(value))
        _encode_items(b"C", pair, parts, room, opaque, depth)
    elif isinstance(value, str):
        _put(parts, room, b"S", str.encode(value, "utf-8", "surrogatepass"))
    elif isinstance(value, (bytes, bytearray)):
        _put(parts, room, b"Y", bytes(value))
    elif isinstance(value, list):
        _encode_items(b"L", list.__iter__(value), parts, room, opaque, depth)
    elif isinstance(value, tuple):
        _encode_items(b"T", tuple.__iter__(value), parts, room, opaque, depth)
    elif isinstance(value, dict):
        flat = (part for item in dict.items(value) for part in item)
        _encode_items(b"D", flat, parts, room, opaque, depth)
    elif isinstance(value, set):
        _encode_items(b"E", set.__iter__(value), parts, room, opaque, depth)
    elif isinstance(value, frozenset):
        _encode_items(b"Z", frozenset.__iter__(value), parts, room, opaque, depth)
    elif isinstance(value, range):
        _encode_items(b"R", (value.start, value.stop, value.step), parts, room, opaque, depth)
    elif _is_standard(value):
        name = _name(value)
        _encode_items(b"V", (name, *STANDARD[name](value)), parts, room, opaque, depth)
    elif _is_foreign_iterable(value):
        _encode_items(b"G", value, parts, room, opaque, depth)
    else:
        _encode_items(b"O", (opaque(value),), parts, room, opaque, depth)


def _name(value):
    return f"{type(value).__module__}.{type(value).__name__}"


def _is_standard(value):
    return _name(value) in STANDARD and getattr(value, "tzinfo", None) is None


def _is_foreign_iterable(value):
    """Generators, map, zip, dict views, deque: yes. Objects of the program's own classes: only if they iterate."""
    kind = type(value)
    return hasattr(kind, "__next__") or (hasattr(kind, "__iter__") and kind.__module__ in ("builtins", "collections"))


def _encode_items(tag, items, parts, room, opaque, depth):
    at = len(parts)
    parts.append(b"")
    count = 0
    for item in items:
        _encode(item, parts, room, opaque, depth + 1)
        count += 1
    room[0] -= 8
    parts[at] = b"%s%d:" % (tag, count)


def decode(data, opaque=_refuse):
    """The value in `data`; `opaque(reference)` gives the object that stands for an opaque one.

    Raises:
        WireError: `data` is not exactly one encoded value.
    """
    try:
        value, end = _decode(data, 0, opaque, 0)
    except WireError:
        raise
    except (ValueError, TypeError, IndexError, ArithmeticError) as error:  # all that odd bytes can cause
        raise WireError(f"unreadable value ({type(error).__name__})") from None
    if end != len(data):
        raise WireError("bytes after the value")
    return value


_CONTAINERS = {b"L": list, b"T": tuple, b"E": set, b"Z": frozenset}


def _decode(data, at, opaque, depth):
    """One value that begins at byte `at`, and where the next begins."""
    if depth > MAX_DEPTH:
        raise WireError("the value is nested too deeply")
    tag = data[at : at + 1]
    colon = data.index(b":", at, at + 16)
    size = int(data[at + 1 : colon])
    at = colon + 1
    if tag in b"NBIFSY":
        payload = data[at : at + size]
        if size < 0 or len(payload) != size:
            raise WireError("a value is cut short")
        return _scalar(tag, payload), at + size
    items = []
    for _ in range(size):
        item, at = _decode(data, at, opaque, depth + 1)
        items.append(item)
    if tag == b"G":
        return iter(items), at
    if tag in _CONTAINERS:
        return _CONTAINERS[tag](items), at
    if tag == b"D":
        return dict(zip(items[0::2], items[1::2], strict=True)), at
    if tag == b"C":
        return complex(*items), at
    if tag == b"R":
        return range(*items), at
    if tag == b"V":
        return _build(*items), at
    if tag == b"O":
        return opaque(*items), at
    raise WireError("unknown tag")


def _build(name, *parts):
    """A value of the standard library, whose module is imported only now."""
    if name not in STANDARD or not all(type(part) in (int, str) for part in parts):
        raise WireError("unknown type")
    module, kind = name.split(".")
    return getattr(__import__(module), kind)(*parts)


def _scalar(tag, payload):
    if tag == b"N":
        return None
    if tag == b"B":
        return payload == b"1"
    if tag == b"I":
        return int(payload, 16)
    if tag == b"F":
        return float.fromhex(payload.decode())
    if tag == b"S":
        return payload.decode("utf-8", "surrogatepass")
    return bytes(payload)


def send(fd, data):
    """Write one frame: the length in four bytes, then `data`.

    Raises:
        Closed: nobody reads any more.
    """
    data = len(data).to_bytes(4, "big") + data
    sent = 0
    try:
        while sent < len(data):
            sent += posix.write(fd, data[sent : sent + 65536])
    except (BrokenPipeError, ConnectionError):
        raise Closed from None


def receive(fd, limit=2 * MAX_BYTES):
    """Read one frame.

    Raises:
        Closed: the other end is gone, or announces a frame of more than `limit` bytes.
    """
    size = int.from_bytes(_read(fd, 4), "big")
    if size > limit:
        raise Closed
    return _read(fd, size)


def _read(fd, size):
    chunks = []
    while size:
        chunk = posix.read(fd, min(size, 1 << 20))
        if not chunk:
            raise Closed
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)
