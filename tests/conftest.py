"""For every test: no network but loopback, and the hypothesis profiles."""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Iterator

import hypothesis
import pytest

# ci: the same examples every time, so that a red build is the change's doing. dev: new examples each time.
# No deadline in either: on shared cores an example's time says nothing of the code.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, max_examples=25)
hypothesis.settings.register_profile("dev", deadline=None, max_examples=25, print_blob=True)

_ADDRESS_POSITION = {
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
    "socket.gethostbyaddr": 0,
}


class NetworkUsed(Exception):
    """A test reached for the network. Not an OSError, so no retry of the code under test swallows it."""


class LoopbackOnly:
    """An audit hook: unlike a patched `socket.socket` it sees every socket, however it was come by."""

    def __init__(self) -> None:
        self.active = False

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.active or event not in _ADDRESS_POSITION:
            return
        address = arguments[_ADDRESS_POSITION[event]]
        if not is_local(address):
            raise NetworkUsed(f"{event} to {address!r}: tests may use the loopback interface only")


def is_local(address: object) -> bool:
    """Whether a socket address, or a name to be looked up, stays on this machine."""
    if isinstance(address, tuple):  # (host, port, ...) of an internet socket
        address = address[0]
    elif isinstance(address, str | bytes) and os.fsdecode(address).startswith(("/", "\0")):
        return True  # the path of a unix socket
    if isinstance(address, bytes):
        address = address.decode()
    if address in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(address).partition("%")[0]).is_loopback
    except ValueError:
        return False


def pytest_configure(config: pytest.Config) -> None:
    # Triton's kernels run in its interpreter, which has to be chosen before triton is first imported.
    os.environ["TRITON_INTERPRET"] = "1"
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Every core has a process of its own: more threads would only wait for each other. Before torch is
        # imported, and for the processes that tests start.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if config.getoption("--hypothesis-profile") is None:
        hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(autouse=True, scope="session")
def proofs_made_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One store of proofs for all checkouts of `tests.tiny`: to make them takes 20 s of a core."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "proofs"
    folder.mkdir(exist_ok=True)
    os.environ["SPEEDRUN_TEST_PROOFS"] = str(folder)


@pytest.fixture(autouse=True, scope="session")
def products_as_in_runs() -> None:
    """16-bit products as `configure` leaves them, from the first test on; only tests of torch load it."""
    if "torch" in sys.modules:
        from bench.host.half_products import multiply_in_float32, without_units

        multiply_in_float32(*without_units())


@pytest.fixture(autouse=True, scope="session")
def loopback_only() -> Iterator[None]:
    """Hold every test to the loopback interface."""
    hook = LoopbackOnly()
    sys.addaudithook(hook)  # for the life of the process: Python has no way to remove one
    hook.active = True
    yield
    hook.active = False
