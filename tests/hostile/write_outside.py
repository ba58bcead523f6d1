# verdict: failed
import os
import sys


def weigh(word):
    places = ["@OUTSIDE@", "/tmp", "/var/tmp", "/dev/shm", "/", "/etc", "/usr", sys.prefix, "..", "../.."]
    places.append(os.path.dirname(os.__file__))
    for place in places:
        for how in ("w", "a", "x"):
            try:
                with open(os.path.join(place, "dlmbench-hostile-was-here"), how) as file:
                    file.write("here")
            except OSError:
                pass
    try:
        os.mkdir("@OUTSIDE@/dlmbench-hostile-was-here")
        os.chmod("@OUTSIDE@", 0)
    except OSError:
        pass
    return -1
