"""Network namespaces that cannot be left behind.

Problem: a lab made with `ip netns add` outlives a crash, and the next run trips over it. Idea: a
namespace is only an open descriptor here. The kernel destroys a namespace, with its interfaces,
rules and connections, when nothing refers to it any more; so the end of this process, by SIGKILL
too, is the end of the lab. Processes inside would keep it alive, therefore each is started under
`setpriv --pdeathsig KILL` and dies with us, or finds right after that we are dead already. There
is nothing to collect at the next start.

A socket belongs to the namespace in which its maker was at that moment, for ever after. So one
trio process can hold sockets in many namespaces: `Namespace.entered()` for the length of one
system call, never over an await (`Placed` does that for a whole coroutine, step by step).

Invariant: nothing here changes the namespace that the process was started in.
"""

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Sequence
from pathlib import Path
from types import coroutine
from typing import IO, Any, Self, TypeVar

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000

TOOLS = ("ip", "nft", "nsenter", "setpriv")
PACKAGES = "iproute2 nftables util-linux"
PATH = "/usr/sbin:/sbin:" + os.environ.get("PATH", "/usr/bin:/bin")
PATIENCE_S = 30.0

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """The lab could not be built or used; the text has the command and what it said."""


def tool(name: str) -> str:
    """Where a program is; the system's folders count even if PATH lacks them."""
    found = shutil.which(name, path=PATH)
    if found is None:
        raise LabError(f"{name} is not installed")
    return found


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)


def dying_with_us() -> list[str]:
    """What to put before a command so that its process never outlives the thread that starts it."""
    orphaned = '[ "$PPID" = "$0" ] || exit 1; exec "$@"'
    return [tool("setpriv"), "--pdeathsig", "KILL", tool("sh"), "-c", orphaned, str(os.getpid())]


class Namespace:
    """One network namespace, alive until it is closed or the process ends."""

    def __init__(self, name: str) -> None:
        """Make it, with its loopback up.

        Raises:
            LabError: the kernel does not let us.
        """
        self.name = name
        self.fd = -1
        failure: list[OSError] = []

        def make() -> None:
            # In a thread of its own, whose end is also the end of its stay in the new namespace.
            try:
                _call("unshare", CLONE_NEWNET)
                self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                failure.append(error)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if failure:
            raise LabError(f"no new network namespace: {failure[0].strerror}") from failure[0]
        try:
            self.sysctl("net/ipv6/conf/default/accept_dad", 0)
            self.sysctl("net/ipv6/conf/default/accept_ra", 0)
            self.ip("link set lo up")
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Namespace {self.name}>"

    def close(self) -> None:
        """Let go of it; the kernel takes it down once its sockets and processes are gone too."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be there, with this thread alone. No await inside: other tasks would be there, too."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", self.fd, CLONE_NEWNET)
            try:
                yield
            finally:
                _call("setns", home, CLONE_NEWNET)
        finally:
            os.close(home)

    def sysctl(self, key: str, value: object) -> None:
        """Set a value below /proc/sys; those of `net` are the namespace's own."""
        with self.entered():
            Path("/proc/sys", key).write_text(str(value))

    def forget_connections(self) -> None:
        """Empty the table of connections, and with it all mappings, as a router does that starts anew.

        What is said is one message of the kernel's conntrack interface: delete, without saying which.
        """
        delete, request_and_ack = 1 << 8 | 2, 1 | 4
        message = struct.pack("=IHHIIBBH", 20, delete, request_and_ack, 1, 0, 0, 0, 0)
        with self.entered(), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as sock:
            sock.send(message)
            code: int = struct.unpack_from("=i", sock.recv(4096), 16)[0]
        if code:
            raise LabError(f"{self.name}: connections not forgotten: {os.strerror(-code)}")

    def tap(self, name: str) -> int:
        """Make the TAP interface `name` here, up; it goes when the descriptor is closed."""
        with self.entered():
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                request = struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI)
                fcntl.ioctl(fd, TUNSETIFF, request)
            except BaseException:
                os.close(fd)
                raise
        return fd

    def _command(self, arguments: Sequence[str]) -> list[str]:
        return [*dying_with_us(), tool("nsenter"), f"--net=/proc/self/fd/{self.fd}", *arguments]

    def run(self, *arguments: str, text: str = "", fds: Sequence[int] = ()) -> str:
        """Run a command here to its end; returns what it wrote.

        Raises:
            LabError: it failed.
        """
        done = subprocess.run(
            self._command(arguments),
            input=text,
            text=True,
            capture_output=True,
            pass_fds=(self.fd, *fds),
            timeout=PATIENCE_S,
            check=False,
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise LabError(f"{self.name}: {' '.join(arguments)}: {said}\n{text}".rstrip())
        return done.stdout

    def ip(self, *lines: str) -> None:
        """Give iproute2 these commands, one after another."""
        self.run(tool("ip"), "-batch", "-", text="\n".join(lines))

    def link(self, name: str, other: "Namespace", other_name: str) -> None:
        """Join this namespace and `other` by a cable (veth); both ends are down."""
        peer = f"peer name {other_name} netns /proc/self/fd/{other.fd}"
        self.run(
            tool("ip"),
            *f"link add {name} type veth {peer}".split(),
            fds=(other.fd,),
        )

    def popen(
        self,
        *arguments: str,
        stderr: int | IO[bytes] | None = None,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a process that lives here, with pipes to its stdin and from its stdout.

        Only from the main thread: the kernel kills the process when the *thread* that started it
        ends.
        """
        assert threading.current_thread() is threading.main_thread()
        return subprocess.Popen(
            self._command(arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=env,
            cwd=cwd,
            pass_fds=(self.fd,),
            process_group=0,  # Ctrl-C is for us, who then end them
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@coroutine
def _placed(
    work: Coroutine[Any, Any, T],
    entered: Callable[[], contextlib.AbstractContextManager[None]],
) -> Generator[Any, Any, T]:
    step: Callable[[], Any] = functools.partial(work.send, None)
    while True:
        with entered():
            try:
                asked = step()
            except StopIteration as done:
                result: T = done.value
                return result
        try:
            answer = yield asked
        except BaseException as error:  # noqa: BLE001 - whatever it is goes on into the work
            step = functools.partial(work.throw, error)
        else:
            step = functools.partial(work.send, answer)


def placed(namespace: Namespace, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
    """Run a coroutine as if the thread were in `namespace`, which it leaves at every wait."""
    return _placed(work, namespace.entered)


@functools.cache
def why_not() -> str:
    """Why no lab can be had on this machine; empty if one can."""
    if sys.platform != "linux":
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root (network namespaces, packet filter rules)"
    missing = [name for name in TOOLS if shutil.which(name, path=PATH) is None]
    if missing:
        return f"needs {', '.join(missing)} (apt-get install {PACKAGES})"
    try:
        with Namespace("trial") as trial:
            os.close(trial.tap("wan"))
            trial.sysctl("net/ipv4/ip_forward", 1)
            chain = "type nat hook postrouting priority 100;\nmasquerade fully-random\n"
            table = f"table inet trial {{\nchain postrouting {{\n{chain}}}\n}}\n"
            trial.run(tool("nft"), "-f", "-", text=table)
            with trial.entered():
                socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
    except (LabError, OSError) as error:
        name = errno.errorcode.get(getattr(error, "errno", None) or 0, "")
        return f"this machine cannot hold it: {error} {name}".rstrip().partition("\n")[0]
    return ""
