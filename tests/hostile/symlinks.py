# verdict: failed
import os


def weigh(word):
    os.symlink("@OUTSIDE@", "door")
    os.symlink("@OUTSIDE@/precious", "file")
    for name in ("door/dlmbench-hostile-was-here", "file"):
        try:
            with open(name, "w") as file:
                file.write("here")
        except OSError:
            pass
    for act in (
        lambda: os.link("@OUTSIDE@/precious", "hard"),
        lambda: os.unlink("door/precious"),
        lambda: os.chmod("file", 0),
        lambda: os.truncate("file", 0),
    ):
        try:
            act()
        except OSError:
            pass
    return -1
