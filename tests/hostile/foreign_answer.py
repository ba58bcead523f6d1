# verdict: failed, crashed
import os

# announces four gigabytes, then sends a container of a billion items
for data in (b"\xff\xff\xff\xff", (18).to_bytes(4, "big") + b"L999999999:L99999:"):
    os.write(4, data)


def weigh(word):
    return 0
