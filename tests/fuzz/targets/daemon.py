"""What a daemon reads: its files and data sets, what its trainer and its control socket say, and what a run is."""

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import trio

from node.blocks.approvals import FILE_NAME as APPROVALS_FILE
from node.blocks.approvals import Approvals
from node.config import load_config
from node.control import ControlServer
from node.data.cifar import load_cifar
from node.data.digits import load_digits
from node.data.errors import DataError
from node.data.femnist import load_femnist
from node.data.idx import parse_idx
from node.data.movielens import load_movielens
from node.errors import NodedError
from node.run.manifest import RunManifest
from node.trainer_messages import decode_trainer_message
from tests.fuzz.targets.kit import target

_SCRATCH = "/dev/shm" if Path("/dev/shm").is_dir() else None


@target
def config(data: bytes) -> None:
    """A configuration file."""
    with tempfile.NamedTemporaryFile(suffix=".toml", dir=_SCRATCH) as file:
        file.write(data)
        file.flush()
        with contextlib.suppress(NodedError):
            load_config(Path(file.name), environ={})


@target
def manifest(data: bytes) -> None:
    """What a run is, as another node tells it."""
    with contextlib.suppress(NodedError, msgspec.ValidationError):
        value = RunManifest.from_json(data)
        assert RunManifest.from_map(value.to_map()) == value


@target
def approvals(data: bytes) -> None:
    """The list of approved code, whatever has become of the file."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, APPROVALS_FILE).write_bytes(data)
        with contextlib.suppress(NodedError):
            assert all(len(bytes.fromhex(task)) == 32 for task in Approvals(Path(folder)).all())


@target
def trainer_message(data: bytes) -> None:
    """What the training process says to its daemon."""
    with contextlib.suppress(NodedError):
        decode_trainer_message(data)


DATA_SETS: dict[bytes, tuple[str, Callable[[str], object]]] = {
    b"d": ("digits.csv", load_digits),
    b"c": ("data_batch_1.bin", lambda path: load_cifar(str(Path(path).parent))),
    b"t": ("cifar.tar.gz", load_cifar),
    b"z": ("movies.zip", load_movielens),
    b"u": ("u.data", lambda path: load_movielens(str(Path(path).parent))),
    b"r": ("ratings.csv", lambda path: load_movielens(str(Path(path).parent))),
    b"f": ("train/all.json", lambda path: load_femnist(str(Path(path).parent.parent))),
}
"""By the input's first byte: the file to write, and who reads it."""


@target
def data_set(data: bytes) -> None:
    """A file of a data set: arrays, or an error of its own kind."""
    with contextlib.suppress(DataError):
        parse_idx(data, "file")
    found = DATA_SETS.get(data[:1])
    if found is None:
        return
    name, load = found
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        for copy in (
            path,
            Path(folder, name.replace("train", "test").replace("data_batch_1", "test_batch")),
        ):
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(data[1:])
        with contextlib.suppress(DataError):
            load(str(path))


class FakeClient:
    """A client of the control socket that says something and hangs up."""

    def __init__(self, data: bytes) -> None:
        self.pieces = [data[start : start + 512] for start in range(0, len(data), 512)]
        self.answered = b""

    async def recv(self, _size: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return self.pieces.pop(0) if self.pieces else b""

    async def send(self, data: bytes) -> int:
        self.answered += bytes(data)
        return len(data)

    def shutdown(self, _how: int) -> None:
        pass


async def _answer(_body: object) -> tuple[int, dict[str, object]]:
    return 200, {"ok": True}


async def _serve(data: bytes) -> bytes:
    client = FakeClient(data)
    server = ControlServer(
        Path("unused"), {("GET", "/v1/status"): _answer, ("POST", "/v1/stop"): _answer}
    )
    await server._serve(client)
    return client.answered


@target
def control(data: bytes) -> None:
    """HTTP on the control socket: an answer or nothing."""
    answer = trio.run(_serve, data)
    assert not answer or answer.startswith(b"HTTP/1.1 ")
