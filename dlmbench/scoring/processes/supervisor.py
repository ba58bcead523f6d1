"""The server that runs programs: one per worker of the harness, started as a script by an isolated interpreter.

It reads jobs as frames on descriptor 0 and answers on descriptor 1. For each job:

    server -- keeper -- judge              knows the tests; calls the program through two pipes
                    \\-- watcher -- program  a fresh interpreter; knows the arguments of one call at a time

The *keeper* holds the wall clock, ends everything the job started and writes the verdict with the job's token. The
*watcher* is the first process of the program's PID namespace: when it exits the kernel ends all others in it, daemons
included. Without that namespace the keeper, a child subreaper, finds what is left and kills it. The judge and the
keeper are out of the program's reach: another user id, another PID namespace, memory not traceable.

Time: a program may use `limit` CPU seconds, which a busy machine does not shorten, and four times that plus two
seconds by the wall clock.
"""

import fcntl
import marshal
import os
import select
import signal
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)


import isolation  # noqa: E402
import judge  # noqa: E402
import wire  # noqa: E402

if isolation.LINUX:
    import linux

READ, WRITE, LIBRARY = 3, 4, 5  # descriptors in the program's process
CPU_EXTRA_FOR_JUDGE = 10
HIGHEST = 240  # no descriptor of the server or its forks is above: it inherits three and opens about thirty
BACKSTOP = 1.0  # seconds after which the keeper does what the watcher should have done
SWEEP_SECONDS = 20.0
BOOTSTRAP = b""  # what `bootstrap` makes, set once by `main`
# Modules that the tests of the known benchmarks use: imported once here, so that forked judges have them.
PRELOAD = ("copy", "math", "random", "re", "typing", "collections", "itertools", "string", "hashlib")


def bootstrap():
    """The code object that the program's interpreter runs: `wire` and `program` in one module, then `serve`."""
    parts = []
    for name in ("wire", "program"):
        with open(os.path.join(HERE, f"{name}.py"), encoding="utf-8") as file:
            parts.append(file.read().replace("from wire import", "# from wire import"))
    return marshal.dumps(compile("\n".join(parts), "<sandbox>", "exec"))


def stub(granted):
    """The `-c` text: read the bootstrap and run it.

    Where another user cannot reach the library, the user is changed only here, the interpreter being up.
    """
    lines = ["import posix, marshal, sys"]
    count, uid = len(granted.library_fds), granted.uid
    if count:
        lines.append(f"sys.path[:] = ['/proc/self/fd/%d' % n for n in range({LIBRARY}, {LIBRARY + count})]")
        lines.append("sys.path_importer_cache.clear()")
        lines.append(f"posix.setgroups([]); posix.setresgid({uid},{uid},{uid}); posix.setresuid({uid},{uid},{uid})")
    lines += [
        "def read(n):",
        " b = b''",
        " while len(b) < n: b += posix.read(3, n - len(b)) or posix._exit(9)",
        " return b",
        "names = {'__name__': 'sandbox'}",
        "exec(marshal.loads(read(int.from_bytes(read(4), 'big'))), names)",
        f"names['serve']({READ}, {WRITE})",
    ]
    return "\n".join(lines)


def become_program(granted, job, read_fd, write_fd, report_fd):
    """In the forked process: own session, only its two pipes, limits, rules; then a fresh interpreter.

    Returns only where that fails, after a report of why.
    """
    os.setsid()
    os.chdir(granted.scratch)
    os.umask(0o077)
    null = os.open("/dev/null", os.O_RDWR)
    inherited = [null, null, null, read_fd, write_fd, *granted.library_fds]
    own = [report_fd, *([granted.landlock.fd] if granted.landlock else ())]
    place(inherited + own)
    for number in range(len(inherited), len(inherited + own)):
        os.set_inheritable(number, False)
    if granted.landlock:
        granted.landlock.fd = len(inherited) + 1
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    executable = os.path.realpath(sys.executable)
    try:
        granted.confine(job["limit"], job["memory"])
        os.execve(executable, [executable, "-I", "-S", "-B", "-X", "utf8", "-c", stub(granted)], {})
    except OSError as error:
        wire.send(len(inherited), wire.encode(("broken", str(error))))


def place(fds):
    """Make `fds` the descriptors 0, 1, 2, ... of this process, inherited by exec, and close all others."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, HIGHEST // 2) for fd in fds]
    for number, fd in enumerate(high):
        os.dup2(fd, number, inheritable=True)
    os.closerange(len(fds), HIGHEST)


def cpu_seconds(pid):
    """CPU time of process `pid` (all its threads): the clock number of another process, clock_getcpuclockid(3)."""
    if not isolation.LINUX:
        return 0.0
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def watch(program, limit, deadline):
    """Reap every child until the program ends or has used up its time. Returns `(what, number)`.

    what: "exit" (status), "signal" (number), "cpu" (seconds allowed) or "clock" (0).
    """
    while True:
        if hasattr(signal, "sigtimedwait"):
            signal.sigtimedwait({signal.SIGCHLD}, 0.05)
        else:
            time.sleep(0.01)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return "exit", 0
            if pid == program:
                return ("signal", os.WTERMSIG(status)) if os.WIFSIGNALED(status) else ("exit", os.WEXITSTATUS(status))
            if not pid:
                break
        if cpu_seconds(program) > limit:
            return "cpu", limit
        if time.monotonic() > deadline:
            return "clock", 0


def run_watcher(granted, job, deadline, read_fd, write_fd, report_fd):
    """First process of the job's PID namespace (where there is one): scratch folder, program, end. Does not return."""
    if isolation.LINUX:
        linux.die_with_parent()
    if granted.tree:
        try:
            granted.mount_scratch()
        except OSError as error:
            wire.send(report_fd, wire.encode(("broken", str(error))))
            return
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD,))
    program = os.fork()
    if not program:
        become_program(granted, job, read_fd, write_fd, report_fd)
        os._exit(70)
    os.close(read_fd)
    os.close(write_fd)
    ended = watch(program, job["limit"], deadline)
    if not isolation.LINUX:
        send_group(program, signal.SIGKILL)
    wire.send(report_fd, wire.encode(ended))


def run_judge(granted, job, read_fd, write_fd, verdict_fd):
    """The judge's process: no descriptors but the two pipes and the verdict's, a user of its own."""
    if isolation.LINUX:
        linux.die_with_parent()
    null = os.open("/dev/null", os.O_RDWR)
    place([null, null, null, read_fd, write_fd, verdict_fd, *granted.library_fds])
    if granted.library_fds:
        sys.path[:] = [f"/proc/self/fd/{6 + at}" for at in range(len(granted.library_fds))]
        sys.path_importer_cache.clear()
    isolation.set_limits(job["limit"] + CPU_EXTRA_FOR_JUDGE, max(job["memory"], 1 << 30), isolation.PROCESSES + 4000)
    if granted.uid:
        isolation.change_user(granted.uid + 1)
    if isolation.LINUX:
        linux.hide_memory()
    try:
        wire.send(4, BOOTSTRAP)
        status, detail = judge.run_checks(3, 4, job)
    except wire.Closed:
        status, detail = "gone", ""
    os.close(3)
    os.close(4)
    wire.send(5, wire.encode((job["token"], status, detail)))


def forked(function, *args):
    """Run `function` in a child that always ends there. Returns the child's pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        function(*args)
        code = 0
    except Exception as error:
        os.write(2, f"sandbox: {function.__name__}: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def keep(granted, job, answer_fd):
    """One job from start to verdict; the process that does it serves no other."""
    started = time.monotonic()
    deadline = started + wall_limit(job)
    if isolation.LINUX:
        linux.become_subreaper()
    to_judge, from_program = os.pipe()
    to_program, from_judge = os.pipe()
    verdict_read, verdict_write = os.pipe()
    report_read, report_write = os.pipe()
    check = forked(run_judge, granted, job, to_judge, from_judge, verdict_write)
    for fd in (to_judge, from_judge, verdict_write):
        os.close(fd)
    if granted.tree:
        linux.unshare(linux.NEW_PID)
    watcher = forked(run_watcher, granted, job, deadline, to_program, from_program, report_write)
    for fd in (to_program, from_program, report_write):
        os.close(fd)
    status, detail = follow(granted, job, (check, watcher), verdict_read, report_read, deadline + BACKSTOP)
    seconds = time.monotonic() - started
    for pid in (check, watcher):
        os.kill(pid, signal.SIGKILL)
    sweep(granted)
    if not granted.tree:
        isolation.empty(granted.scratch)
    wire.send(answer_fd, wire.encode({"token": job["token"], "status": status, "detail": detail, "seconds": seconds}))


def wall_limit(job):
    """Seconds by the clock: for programs that sleep, and long enough for a busy one on a machine shared by four."""
    return 4 * job["limit"] + 2


def follow(granted, job, spare, verdict_fd, report_fd, deadline):
    """Wait for the judge's verdict, the watcher's report or the deadline. Returns `(status, detail)`.

    `spare`: the keeper's own two children, which stay when the program's leftovers are swept away.
    """
    verdict = report = None
    waiting = {verdict_fd, report_fd}
    while verdict is None and waiting:
        left = deadline - time.monotonic()
        ready = select.select(waiting, (), (), max(left, 0))[0]
        if not ready:
            return ending(job, ("clock", 0))
        if report_fd in ready:
            waiting.discard(report_fd)
            report = read_frame(report_fd)
            if not granted.tree:
                sweep(granted, spare)  # what the program started may hold its pipe open
        if verdict_fd in ready:
            waiting.discard(verdict_fd)
            verdict = read_frame(verdict_fd)
            if verdict is None or verdict[0] != job["token"]:
                return "crashed", "the judge ended without a verdict"
    assert verdict is not None  # the loop leaves nothing to wait for only after a verdict
    if verdict[1] != "gone":
        return verdict[1], verdict[2]
    if report is None and select.select([report_fd], (), (), 2)[0]:
        report = read_frame(report_fd)
    return ending(job, report)


def read_frame(fd):
    try:
        return wire.decode(wire.receive(fd))
    except (wire.Closed, wire.WireError):
        return None


def ending(job, report):
    """`(status, detail)` of a program that ended before it had answered all calls.

    Two statuses are for the harness alone: "overdue" (a timeout by the clock) and "broken" (the sandbox is at fault).
    """
    if report is None:
        return "crashed", "the program closed its pipe and did not end"
    what, number = report
    if what == "broken":
        return "broken", f"the sandbox could not start the program ({number})"
    if what == "clock":
        return "overdue", f"no result in {wall_limit(job):.1f} s by the clock"
    if what == "cpu":
        return "timeout", f"more than {number:.1f} s of CPU time"
    if what == "exit":
        return "crashed", f"exit status {number} before all calls were answered"
    if number == getattr(signal, "SIGXCPU", None):
        return "timeout", "the CPU time limit"
    return "crashed", f"killed by signal {number} before all calls were answered"


def sweep(granted, spare=()):
    """End and reap all that the job started, except the keeper's children in `spare`."""
    if granted.tree:
        try:
            while True:
                os.wait()  # the kernel ends all others with the watcher, the first process of their namespace
        except ChildProcessError:
            return
    until = time.monotonic() + SWEEP_SECONDS
    while time.monotonic() < until:
        if granted.uid:
            os.waitpid(forked(kill_user, granted.uid), 0)
        left = stop_descendants(spare)
        for pid in left:
            send_signal(pid, signal.SIGKILL)
        # The keeper inherits every orphan, so no child at all means that nothing is left. A look at /proc is not
        # enough: it is no snapshot, and a process whose parent dies during the look escapes it.
        if not left and (spare or no_children()):
            return
        time.sleep(0.001)


def stop_descendants(spare):
    """Stop all processes below this one, again and again until a look finds no new one. Returns their pids."""
    stopped: set[int] = set()
    while new := descendants(os.getpid()) - stopped - set(spare):
        for pid in new:
            send_signal(pid, signal.SIGSTOP)
        stopped |= new
    return stopped


def send_group(leader, number):
    """A signal to the session that the program leads, if it still has members."""
    try:
        os.killpg(leader, number)
    except (ProcessLookupError, PermissionError):
        pass


def send_signal(pid, number):
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def no_children():
    """Reap what has ended. Returns whether no child is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def kill_user(uid):
    """End every process of user `uid`, all at once: what kill(-1) does when that user asks for it."""
    isolation.change_user(uid)
    os.kill(-1, signal.SIGKILL)


def processes():
    """(pid, parent) of every living process that /proc shows; nothing on systems without it."""
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
        except OSError:
            continue
        if state not in b"ZX":
            yield int(name), int(parent)


def descendants(pid):
    """Pids of all living processes below `pid`."""
    children: dict[int, list[int]] = {}
    for child, parent in processes():
        children.setdefault(parent, []).append(child)
    found = list(children.get(pid, ()))
    for child in found:
        found += children.get(child, ())
    return set(found)


def main():
    """Arguments: "namespaces" or "plain", and the folder for temporary files. The first frame out is the report."""
    global BOOTSTRAP
    BOOTSTRAP = bootstrap()
    for name in PRELOAD:
        __import__(name)
    sys.path.remove(HERE)
    granted = isolation.Isolation(sys.argv[1] == "namespaces", sys.argv[2])
    wire.send(1, wire.encode({"report": granted.report}))
    while True:
        try:
            job = wire.decode(wire.receive(0, 1 << 26))
        except wire.Closed:
            granted.close()
            return
        keeper = forked(keep, granted, job, 1)
        if os.waitpid(keeper, 0)[1]:
            lost = {"token": job["token"], "status": "broken", "detail": "the keeper of the job failed"}
            wire.send(1, wire.encode(lost))


if __name__ == "__main__":
    main()
