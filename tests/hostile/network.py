# verdict: failed
import socket


def weigh(word):
    for family, kind, address in (
        (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", int("@PORT@"))),
        (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", int("@PORT@"))),
        (socket.AF_INET, socket.SOCK_STREAM, ("1.1.1.1", 53)),
    ):
        try:
            with socket.socket(family, kind) as line:
                line.settimeout(1)
                line.connect(address)
                line.send(b"hello")
                return "connected"
        except OSError:
            pass
    return -1
