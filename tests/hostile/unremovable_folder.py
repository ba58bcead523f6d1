# verdict: failed, crashed
import os


def weigh(word):
    os.mkdir("locked")
    for name in ("locked/file", "locked/other"):
        open(name, "w").close()
    os.symlink("@OUTSIDE@", "locked/door")
    os.chmod("locked", 0)
    for _ in range(700):
        os.mkdir("deep" * 20)
        os.chdir("deep" * 20)
    os.chmod(".", 0)
    return -1
