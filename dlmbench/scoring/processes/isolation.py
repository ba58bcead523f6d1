"""Where a program runs: the isolation that this kernel grants, and the steps that put a process into it.

Two layers, each used when it is there:
- *namespaces*: the server enters a mount, network, IPC, UTS (and, without root, user) namespace of its own, whose file
  system is a small read-only tree: the system's libraries, this Python without its site-packages, five devices. Every
  program gets a PID namespace and a fresh memory file system as its scratch folder, both gone with it.
- *rules on the process*: another user id (when root), resource limits, no new privileges, Landlock (reading and
  writing by folder, no TCP, no signals outside), a seccomp filter (no sockets, no tracing).

In a container that forbids namespaces the second layer still confines files, network and signals. On macOS only limits,
process group and temporary folder remain. `Isolation.report` says what holds.

Left out: a limit on the memory of all processes of a program together (see `linux`).
"""

import glob
import os
import resource
import stat
import sys

LINUX = sys.platform == "linux"
if LINUX:
    import linux

SCRATCH = "/scratch/job"
SCRATCH_OPTIONS = "size=32m,nr_inodes=2000,mode=700"
PROCESSES = 24
OPEN_FILES = 64
FILE_BYTES = 16 << 20
FIRST_UID, UIDS = 61184, 4336  # the range that systemd keeps for users without an account
DEVICES = ("null", "zero", "full", "random", "urandom")


def attempt(step):
    """Run `step` in a throw-away child. Returns None, or why it cannot be done."""
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if not child:
        try:
            step()
        except BaseException as error:
            os.write(write_fd, f"{error}".encode()[:300] or b"refused")
        finally:
            os._exit(0)
    os.close(write_fd)
    said = b"".join(iter(lambda: os.read(read_fd, 300), b""))
    os.close(read_fd)
    os.waitpid(child, 0)
    return said.decode("utf-8", "replace") or None


def interpreter_paths():
    """Real paths that this interpreter needs: its executable's folder, its library folders, the shared libraries."""
    own = [os.path.dirname(os.path.realpath(sys.executable)), *(path for path in sys.path if os.path.isdir(path))]
    own += [os.path.join(prefix, "lib") for prefix in {sys.base_prefix, sys.base_exec_prefix}]
    system = ["/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin", "/nix/store", "/etc/ld.so.cache"]
    paths = {os.path.realpath(path) for path in filter(os.path.exists, own)} | set(filter(os.path.exists, system))
    return [path for path in sorted(paths) if not any(path.startswith(above + "/") for above in paths)]


def hidden_paths():
    """Installed packages stay out of sight: a benchmark's package holds its answers."""
    roots = {os.path.realpath(path) for path in sys.path if os.path.isdir(path)}
    roots |= {"/usr/lib*/python*", "/usr/local/lib*/python*"}
    patterns = [f"{root}/{kind}-packages" for root in roots for kind in ("site", "dist")]
    return sorted({path for pattern in patterns for path in glob.glob(pattern)})


def build_tree():
    """Replace the file system of this mount namespace by a small read-only one (see the module's text)."""
    linux.mount("none", "/", None, linux.MS_RECURSIVE | linux.MS_PRIVATE)
    stage = next(path for path in ("/tmp", "/mnt", "/media", "/home") if os.path.isdir(path))
    needed, hidden = interpreter_paths(), hidden_paths()
    linux.mount("tmpfs", stage, "tmpfs", linux.MS_NOSUID, "size=1m,mode=755")
    os.mkdir(f"{stage}/.host")
    linux.pivot_root(stage, f"{stage}/.host")
    os.chdir("/")
    for path in (*needed, *(f"/dev/{name}" for name in DEVICES)):
        _bring(path)
    for path in hidden:
        linux.mount("tmpfs", path, "tmpfs", linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV, "size=4k")
    os.makedirs(SCRATCH)
    if not os.path.lexists("/tmp"):
        os.symlink(SCRATCH, "/tmp")
    linux.unmount("/.host")
    os.rmdir("/.host")
    linux.make_read_only("/", recursive=False)


def _bring(path):
    """Bind one folder or file of the host at the same place, read-only; links are made anew."""
    host = "/.host" + path
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.islink(host):
        os.symlink(os.readlink(host), path)
        return
    if os.path.isdir(host):
        os.mkdir(path)
    else:
        os.close(os.open(path, os.O_CREAT))
    linux.mount(host, path, None, linux.MS_BIND | linux.MS_RECURSIVE)
    linux.make_read_only(path)


class Isolation:
    """The isolation of one server; built once, before any job.

    Args:
        namespaces: False leaves the first layer out, as a container that forbids it would.
        folder: where temporary files go.

    Attributes:
        tree: the file system is the small one, and programs get PID namespaces.
        uid: the user (and group) that programs run as, the judge being the next; 0 where the user cannot be changed.
        scratch: working directory of programs.
        folder: where there is no tree, the temporary folder around `scratch`; `close` removes it.
        own_files: programs run as our own user among our own files; they must not change modes and owners, which
            Landlock does not cover.
        library_fds: where another user cannot reach this Python's library (it lies in a home folder): open
            descriptors of `sys.path`, through which it can.
        report: name -> (holds, remark).
    """

    def __init__(self, namespaces, folder):
        self.report = {}
        self.root = os.geteuid() == 0
        self.uid = 0
        self.tree = self.user_namespace = False
        self.scratch, self.folder = SCRATCH, None
        self.library_fds = []
        self.landlock = None
        if LINUX:
            linux.hide_memory()
            self._enter(namespaces)
        if not self.tree:
            name = f"dlmbench-sandbox-{os.getpid()}-{os.urandom(4).hex()}"
            self.folder = os.path.join(os.path.realpath(folder), name)
            os.mkdir(self.folder, 0o711)  # programs may run as another user and must reach the folder below
            self.scratch = os.path.join(self.folder, "job")
            os.mkdir(self.scratch, 0o700)
        self._choose_user()
        self.own_files = not self.uid and not self.tree
        self._prepare_rules()

    def close(self):
        """Remove the temporary folder."""
        if self.folder:
            empty(self.scratch)
            os.rmdir(self.scratch)
            os.rmdir(self.folder)

    def mount_scratch(self):
        """In the first process of a program's namespace (where there is a tree): a scratch folder of its own."""
        linux.unshare(linux.NEW_MOUNT)
        user = f",uid={self.uid},gid={self.uid}" if self.uid else ""
        linux.mount("tmpfs", SCRATCH, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, SCRATCH_OPTIONS + user)

    def _note(self, name, why_not, remark):
        self.report[name] = (why_not is None, remark if why_not is None else f"not available: {why_not}")

    def _enter(self, namespaces):
        """First layer. Each step is tried in a child before this process takes it: nothing is left half done."""
        off = None if namespaces else "switched off"

        def isolate(rest=0):
            if not self.root:
                uid, gid = os.getuid(), os.getgid()
                linux.show_memory()
                linux.unshare(linux.NEW_USER)
                linux.map_own_user(uid, gid)
                linux.hide_memory()
            if rest:
                linux.unshare(rest)

        def whole():
            isolate(linux.NEW_MOUNT | linux.NEW_IPC | linux.NEW_UTS)
            build_tree()
            linux.unshare(linux.NEW_PID)
            inner = attempt(lambda: linux.mount("tmpfs", SCRATCH, "tmpfs", 0, SCRATCH_OPTIONS))
            if inner:
                raise OSError(inner)

        why_user = off or attempt(lambda: linux.unshare(linux.NEW_USER))
        why_tree = off or attempt(whole)
        why_network = off or attempt(lambda: isolate(linux.NEW_NETWORK))
        self.user_namespace = why_user is None
        self.tree = why_tree is None
        if not self.root and None in (why_tree, why_network):
            isolate()
        if why_network is None:
            linux.unshare(linux.NEW_NETWORK)
        if why_tree is None:
            linux.unshare(linux.NEW_MOUNT | linux.NEW_IPC | linux.NEW_UTS)
            build_tree()
        self._note("user namespace", why_user, "no rights outside it")
        self._note("process namespace", why_tree, "programs neither see nor signal other processes")
        self._note("mount namespace", why_tree, "read-only small file system, scratch folder in memory")
        self._note("network namespace", why_network, "no interfaces")

    def _choose_user(self):
        why = "not running as root, programs run as this user"
        if self.root:
            why = attempt(lambda: change_user(FIRST_UID))
        if why is None and not LINUX and attempt(self._reach_library):
            why = "another user cannot read this Python's library"
        self._note("separate user", why, "programs run as a user without account")
        if why is not None:
            return
        self.uid = FIRST_UID + 2 * (os.getpid() % (UIDS // 2))
        if self.tree:
            return
        while self._reserved_elsewhere():
            self.uid = FIRST_UID + 2 * (int.from_bytes(os.urandom(4), "big") % (UIDS // 2))
        if attempt(self._reach_library):
            self.library_fds = [os.open(path, os.O_PATH) for path in sys.path if os.path.isdir(path)]
            sys.path[:] = [f"/proc/self/fd/{fd}" for fd in self.library_fds]
            sys.path_importer_cache.clear()

    def _reserved_elsewhere(self):
        """Whether another server uses this user. To end a program is to end all of its user, so each has its own.

        The owner of a server's scratch folder marks the user as taken: first marked, then compared, so that of two
        servers with one idea at least one sees the other.
        """
        assert self.folder is not None  # users are taken only where there is no tree
        os.chown(self.scratch, self.uid, self.uid)
        others = set(glob.glob(os.path.join(os.path.dirname(self.folder), "dlmbench-sandbox-*", "job"))) - {
            self.scratch
        }
        return any(owner(path) == self.uid for path in others)

    @staticmethod
    def _reach_library():
        change_user(FIRST_UID)
        os.stat(os.__file__)
        os.stat(os.path.realpath(sys.executable))

    def _prepare_rules(self):
        """Second layer: build the Landlock rules once, and see which rules this kernel takes."""
        why_rules = why_calls = "Linux only"
        remark = ""
        if LINUX:

            def enforce(rule):
                linux.forbid_new_privileges()
                rule()

            try:
                self.landlock = self._landlock()
                why_rules = attempt(lambda: enforce(self.landlock.enforce))
                version = self.landlock.version
                covers = [name for name, since in (("files", 1), ("TCP", 4), ("signals", 6)) if version >= since]
                remark = f"ABI {version}: {', '.join(covers)}"
            except OSError as error:
                why_rules = str(error)
            why_calls = attempt(lambda: enforce(self._deny_calls))
        if why_rules:
            self.landlock = None
        self.filter_calls = why_calls is None
        self._note("Landlock", why_rules, remark)
        denied = "no sockets, tracing, mounts" + (", changes of file modes" if self.own_files else "")
        self._note("call filter", why_calls, denied)
        limits = "CPU, memory, file size, processes, open files, core"
        unsure = "" if LINUX else "; the memory limit may not bind on this system"
        self.report["resource limits"] = (LINUX, limits + unsure)

    def _landlock(self):
        rules = linux.Landlock()
        hidden = hidden_paths()
        for path in (*interpreter_paths(), *(path for path in sys.path if os.path.isdir(path))):
            if os.path.exists(path):
                rules.allow_reading(os.path.realpath(path), hidden)
        for name in DEVICES:
            if os.path.exists(f"/dev/{name}"):
                rules.allow_writing(f"/dev/{name}")
        # Landlock passes over a folder on which something is mounted, as the scratch folder of the tree will be: there
        # the rule is for its parent, which is read-only.
        rules.allow_writing(os.path.dirname(SCRATCH) if self.tree else self.scratch)
        return rules

    def confine(self, limit, memory):
        """Put this process, which is about to exec the interpreter, under the second layer.

        The user is not changed here where the interpreter must do it itself, see `library_fds`.

        Args:
            limit: CPU seconds.
            memory: bytes of address space.
        """
        set_limits(limit, memory, PROCESSES + (own_tasks() if self.own_files else 0))
        if self.uid and not self.library_fds:
            change_user(self.uid)
            if self.user_namespace:
                self._enter_empty_user_namespace()
        if LINUX:
            linux.forbid_new_privileges()
            if self.landlock:
                self.landlock.enforce()
            if self.filter_calls:
                self._deny_calls()

    def _deny_calls(self):
        linux.deny_calls(modes=self.own_files)

    @staticmethod
    def _enter_empty_user_namespace():
        try:
            linux.unshare(linux.NEW_USER)
        except OSError:
            pass  # one wall less; the others stand


def empty(folder):
    """Remove all below `folder`, however deep, never following links: folders are moved up, then removed."""
    fresh = 0
    os.chmod(folder, 0o700)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    top = os.open(folder, flags)
    try:
        while entries := os.listdir(top):
            for name in entries:
                try:
                    os.unlink(name, dir_fd=top)
                    continue
                except (IsADirectoryError, PermissionError):
                    pass
                os.chmod(name, 0o700, dir_fd=top)
                inner = os.open(name, flags, dir_fd=top)
                for below in os.listdir(inner):
                    fresh += 1
                    if stat.S_ISDIR(os.lstat(below, dir_fd=inner).st_mode):
                        os.chmod(below, 0o700, dir_fd=inner)  # a folder that may not be written cannot be moved
                    os.rename(below, f"{fresh}.moved", src_dir_fd=inner, dst_dir_fd=top)
                os.close(inner)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)


def owner(path):
    """User id of the owner of `path`; -1 where it is gone."""
    try:
        return os.lstat(path).st_uid
    except OSError:
        return -1


def own_tasks():
    """Threads and processes of this user now; 500 where the system does not tell.

    A limit on processes counts all of the user's, so those that run already are added to it.
    """
    total = 0
    for path in glob.glob("/proc/[0-9]*"):
        try:
            if os.stat(path).st_uid == os.getuid():
                total += len(os.listdir(path + "/task"))
        except OSError:
            continue
    return total or 500


def change_user(uid):
    """Become user and group `uid` for good, without other groups."""
    os.setgroups([])
    if hasattr(os, "setresuid"):
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    else:
        os.setgid(uid)
        os.setuid(uid)


def set_limits(limit, memory, processes):
    wanted = {"CPU": int(limit) + 2, "AS": memory, "FSIZE": FILE_BYTES, "NPROC": processes, "NOFILE": OPEN_FILES}
    wanted["CORE"] = 0
    for name, value in wanted.items():
        number = getattr(resource, f"RLIMIT_{name}", None)
        if number is None:
            continue
        _, most = resource.getrlimit(number)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        try:
            resource.setrlimit(number, (value, value))
        except (ValueError, OSError):  # macOS refuses some; the report says which limits bind
            continue
