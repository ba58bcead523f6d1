# verdict: failed, crashed, timeout
import os
import sys

# speaks the sandbox's own protocol: a thousand answers "1", then leaves
frame = sys._getframe()
while frame and "encode" not in frame.f_globals:
    frame = frame.f_back
encode = frame.f_globals["encode"]
data = encode(("value", 1))
for _ in range(1000):
    os.write(4, len(data).to_bytes(4, "big") + data)
os._exit(0)
