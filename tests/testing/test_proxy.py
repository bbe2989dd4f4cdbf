"""Each fault of the proxy does on the wire what its name says, is counted, and ends with heal()."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from aiecs_resilient.testing.proxy import (
    Bandwidth,
    BlackHole,
    Corrupted,
    Cut,
    Drip,
    Fault,
    FaultProxy,
    Flapping,
    Latency,
    LateReply,
    Refused,
    ReplyLost,
    Reset,
    Silence,
    Sliced,
    SlowClose,
    Stall,
)
from aiecs_resilient.testing.servers import PostgreSQLServer, ValkeyServer

from ._processes import eventually

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Echo:
    """Answers with what it received, and knows what that was."""

    def __init__(self) -> None:
        self.received = b""
        self.pieces: list[bytes] = []
        self.arrived = asyncio.Event()
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                self.received += data
                self.pieces.append(data)
                self.arrived.set()
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            self.ended.set()
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Echo, int]]:
    behind = Echo()
    server = await asyncio.start_server(behind.serve, "127.0.0.1", 0)
    yield behind, server.sockets[0].getsockname()[1]
    server.close()


@pytest.fixture
async def behind(echo: tuple[Echo, int]) -> Echo:
    return echo[0]


@pytest.fixture
async def proxy(echo: tuple[Echo, int]) -> AsyncIterator[FaultProxy]:
    async with FaultProxy("127.0.0.1", echo[1], seed=1) as running:
        yield running


@pytest.fixture
async def client(proxy: FaultProxy) -> AsyncIterator[Stream]:
    """A connection through the healthy proxy that has been used once."""
    stream = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await ask(stream, b"first") == b"first"
    yield stream
    stream[1].close()


async def ask(stream: Stream, question: bytes) -> bytes:
    stream[1].write(question)
    return await asyncio.wait_for(stream[0].readexactly(len(question)), 10)


async def is_silent(stream: Stream) -> bool:
    """No byte, no end and no error for a moment."""
    try:
        await asyncio.wait_for(stream[0].read(1), 0.15)
    except TimeoutError:
        return True
    return False


async def test_a_healthy_proxy_changes_nothing(proxy: FaultProxy, client: Stream) -> None:
    """Any bytes, many of them, both ways, and an orderly end."""
    data = os.urandom(3_000_000)
    client[1].write(data)
    client[1].write_eof()
    assert await client[0].read() == data
    assert not proxy.injected


async def test_latency_delays_every_piece(proxy: FaultProxy, client: Stream) -> None:
    """Both directions wait delay ± jitter."""
    proxy.set(Latency(delay=0.05, jitter=0.01))
    start = time.monotonic()
    await ask(client, b"slow")
    assert 0.08 <= time.monotonic() - start < 1
    assert proxy.injected[Latency] == 2


async def test_refused_means_nobody_listens(proxy: FaultProxy, client: Stream) -> None:
    """Open connections break, new ones are refused, and after heal() the port is the same."""
    port = proxy.port
    proxy.set(Refused())
    with pytest.raises(ConnectionResetError):
        await client[0].readexactly(1)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    proxy.heal()
    stream = await asyncio.open_connection("127.0.0.1", port)
    assert await ask(stream, b"back") == b"back"
    stream[1].close()
    assert proxy.injected[Refused] == 1


async def test_bandwidth_is_a_limit(proxy: FaultProxy, client: Stream) -> None:
    """20 KB at 100 KB/s take a fifth of a second, in one direction only if so asked."""
    proxy.set(Bandwidth(bytes_per_second=100_000, direction="request"))
    start = time.monotonic()
    await ask(client, b"x" * 20_000)
    assert 0.15 <= time.monotonic() - start < 2
    assert proxy.injected[Bandwidth] == 1


async def test_a_drip_is_one_byte_at_a_time(proxy: FaultProxy, client: Stream) -> None:
    """Bytes trickle, and heal() lets the rest flow at once."""
    proxy.set(Drip(interval=30, direction="reply"))
    client[1].write(b"message")
    assert await client[0].read(100) == b"m"
    assert await is_silent(client)
    proxy.heal()
    assert await asyncio.wait_for(client[0].readexactly(6), 5) == b"essage"
    assert proxy.injected[Drip] == 1


async def test_a_slow_close_keeps_the_end_back(proxy: FaultProxy, behind: Echo, client: Stream) -> None:
    """The server learns late that the client has gone."""
    proxy.set(SlowClose(delay=0.1))
    start = time.monotonic()
    client[1].close()
    await asyncio.wait_for(behind.ended.wait(), 5)
    assert time.monotonic() - start >= 0.1
    assert proxy.injected[SlowClose] >= 1


async def test_a_black_hole_accepts_and_swallows(proxy: FaultProxy, behind: Echo, client: Stream) -> None:
    """Old and new connections are silent, the server sees nothing, and what lost bytes never speaks again."""
    proxy.set(BlackHole())
    client[1].write(b"lost")
    new = await asyncio.open_connection("127.0.0.1", proxy.port)
    new[1].write(b"lost too")
    assert await is_silent(client)
    assert await is_silent(new)
    assert behind.received == b"first"
    proxy.heal()
    client[1].write(b"still lost")
    assert await is_silent(client)
    new[1].close()
    assert proxy.injected[BlackHole] == 2


async def test_reset_is_a_reset(proxy: FaultProxy, behind: Echo, client: Stream) -> None:
    """The client sees RST, not an orderly end, and the request did not pass."""
    proxy.set(Reset(direction="request"))
    client[1].write(b"never")
    with pytest.raises(ConnectionResetError):
        await client[0].readexactly(1)
    assert behind.received == b"first"
    assert proxy.injected[Reset] == 1


async def test_sliced_data_arrive_in_small_pieces_and_whole(
    proxy: FaultProxy, behind: Echo, client: Stream
) -> None:
    """Nothing is changed but the size of the pieces."""
    proxy.set(Sliced())
    question = bytes(range(256))
    behind.pieces.clear()
    assert await ask(client, question) == question
    assert len(behind.pieces) > 20
    assert proxy.injected[Sliced] >= 2


@pytest.mark.parametrize("reset", [False, True])
async def test_cut_ends_the_connection_at_an_exact_byte(
    proxy: FaultProxy, client: Stream, reset: bool
) -> None:
    """Counted from when the fault was set, over several messages."""
    proxy.set(Cut(at=7, reset=reset))
    assert await ask(client, b"12345") == b"12345"
    client[1].write(b"67890")
    got = b""
    try:
        while piece := await client[0].read(100):
            got += piece
    except ConnectionResetError:
        assert reset
    else:
        assert not reset
    assert got == b"67" or (reset and b"67".startswith(got))
    assert proxy.injected[Cut] == 1


async def test_a_lost_reply_is_of_an_executed_request(
    proxy: FaultProxy, behind: Echo, client: Stream
) -> None:
    """The server got the request, the client gets a reset; requests that do not match pass."""
    proxy.set(ReplyLost(matching=b"write"))
    assert await ask(client, b"read") == b"read"
    client[1].write(b"write")
    with pytest.raises(ConnectionResetError):
        await client[0].readexactly(1)
    assert behind.received == b"firstreadwrite"
    assert proxy.injected[ReplyLost] == 1


async def test_silence_executes_and_says_nothing_for_ever(
    proxy: FaultProxy, behind: Echo, client: Stream
) -> None:
    """The request arrives, no reply comes, the connection stays open, also after heal()."""
    proxy.set(Silence())
    behind.arrived.clear()
    client[1].write(b"done")
    await asyncio.wait_for(behind.arrived.wait(), 5)
    assert await is_silent(client)
    assert behind.received.endswith(b"done")
    assert proxy.injected[Silence] == 1
    proxy.heal()
    client[1].write(b"more")
    assert await is_silent(client)


async def test_a_late_reply_answers_the_request_before(proxy: FaultProxy, client: Stream) -> None:
    """Who asks again on a connection it gave up waiting on gets the earlier answer first."""
    proxy.set(LateReply(hold=30))
    client[1].write(b"old")
    assert await is_silent(client)
    proxy.heal()
    assert await is_silent(client)
    client[1].write(b"new")
    assert await asyncio.wait_for(client[0].readexactly(6), 5) == b"oldnew"
    assert proxy.injected[LateReply] == 1


async def test_a_late_reply_comes_at_last(proxy: FaultProxy, client: Stream) -> None:
    """Without another request it is held for `hold` seconds."""
    proxy.set(LateReply(hold=0.1))
    start = time.monotonic()
    assert await ask(client, b"old") == b"old"
    assert time.monotonic() - start >= 0.1


async def test_corrupted_is_one_wrong_bit(proxy: FaultProxy, behind: Echo, client: Stream) -> None:
    """Exactly one bit of the reply differs; the request was right."""
    proxy.set(Corrupted())
    answer = await ask(client, b"precious")
    assert sum((a ^ b).bit_count() for a, b in zip(answer, b"precious", strict=True)) == 1
    assert behind.received == b"firstprecious"
    assert proxy.injected[Corrupted] == 1


@pytest.mark.parametrize("direction", ["request", "reply"])
async def test_a_stall_holds_one_direction_until_healed(
    proxy: FaultProxy, behind: Echo, client: Stream, direction: str
) -> None:
    """Nothing is lost: the bytes come when the stall ends."""
    proxy.set(Stall(direction="request" if direction == "request" else "reply"))
    client[1].write(b"later")
    assert await is_silent(client)
    assert behind.received == (b"first" if direction == "request" else b"firstlater")
    proxy.heal()
    assert await asyncio.wait_for(client[0].readexactly(5), 5) == b"later"
    assert proxy.injected[Stall] == 1


async def test_flapping_refuses_and_accepts_by_turns(proxy: FaultProxy) -> None:
    """Both happen within a few periods, and heal() ends it."""
    proxy.set(Flapping(period=0.02))
    seen: set[str] = set()
    async with asyncio.timeout(10):
        while seen != {"refused", "accepted"}:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
                writer.close()
                seen.add("accepted")
            except (ConnectionRefusedError, ConnectionResetError):  # reset: it was waiting to be accepted
                seen.add("refused")
            await asyncio.sleep(0.005)  # the proxy runs in this loop: it needs its turn to flap
    assert proxy.injected[Flapping] >= 1
    proxy.heal()
    stream = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await ask(stream, b"steady") == b"steady"
    stream[1].close()


async def test_one_connection_can_be_injured_alone(proxy: FaultProxy, client: Stream) -> None:
    """The others go on; the listener's faults are not for one connection."""
    other = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await ask(other, b"hello") == b"hello"
    first, second = proxy.connections
    proxy.set(Stall(), connection=second)
    assert await ask(client, b"fine") == b"fine"
    other[1].write(b"stuck")
    assert await is_silent(other)
    assert "Stall" in repr(second)
    assert "healthy" in repr(first)
    proxy.heal()
    assert await asyncio.wait_for(other[0].readexactly(5), 5) == b"stuck"
    other[1].close()
    with pytest.raises(ValueError, match="listener"):
        proxy.set(Refused(), connection=first)


async def test_dropped_connections_are_reset_and_new_ones_work(proxy: FaultProxy, client: Stream) -> None:
    """drop_connections() is a fault of the moment."""
    proxy.drop_connections()
    with pytest.raises(ConnectionResetError):
        await client[0].readexactly(1)
    stream = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await ask(stream, b"again") == b"again"
    stream[1].close()
    assert proxy.injected[Reset] == 1


async def test_a_fault_that_never_struck_is_named(proxy: FaultProxy, client: Stream) -> None:
    """A scenario that injected nothing proves nothing, so the proxy knows which faults did not strike."""
    proxy.set(ReplyLost(matching=b"COMMIT"), Latency(delay=0, jitter=0))
    await ask(client, b"x")
    assert proxy.never_struck() == {ReplyLost}


async def test_the_same_seed_strikes_the_same_requests(echo: tuple[Echo, int]) -> None:
    """A failed scenario can be run again; another seed strikes elsewhere."""

    async def struck(seed: int) -> list[bool]:
        async with FaultProxy("127.0.0.1", echo[1], seed=seed) as proxy:
            stream = await asyncio.open_connection("127.0.0.1", proxy.port)
            proxy.set(Corrupted(probability=0.5))
            answers = [await ask(stream, b"question") != b"question" for _ in range(40)]
            stream[1].close()
            assert proxy.injected[Corrupted] == sum(answers)
            return answers

    assert await struck(5) == await struck(5) != await struck(6)


async def test_a_server_that_is_down_resets_the_client() -> None:
    """The proxy never looks healthier than what is behind it."""
    with ValkeyServer() as gone:
        port = gone.port
    async with FaultProxy("127.0.0.1", port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()


async def test_close_leaves_no_task_and_no_socket(echo: tuple[Echo, int]) -> None:
    """Whatever the faults are doing at that moment."""

    def sockets() -> Iterator[str]:
        for descriptor in Path("/proc/self/fd").iterdir():
            if descriptor.exists() or descriptor.is_symlink():
                target = str(descriptor.readlink())
                if target.startswith("socket:"):
                    yield target

    before = set(sockets())
    kinds: list[Fault] = [Stall(), BlackHole(), Latency(delay=60), LateReply(hold=60), Drip(interval=60)]
    for fault in [*kinds, Flapping(period=60), Silence(), Refused()]:
        proxy = FaultProxy("127.0.0.1", echo[1])
        async with proxy:
            streams = [await asyncio.open_connection("127.0.0.1", proxy.port) for _ in range(3)]
            await ask(streams[0], b"hello")
            proxy.set(fault)
            for stream in streams:
                stream[1].write(b"question")
            await asyncio.sleep(0.01)
            proxy.drop_connections()
            unborn = await asyncio.gather(
                asyncio.open_connection("127.0.0.1", proxy.port), return_exceptions=True
            )
        await proxy.close()
        for one in [*streams, *unborn]:
            if not isinstance(one, BaseException):
                one[1].close()
        names = [task.get_name() for task in asyncio.all_tasks()]
        assert not any(name.startswith("proxied") for name in names)
    # The echo server's ends go when it has noticed, meanwhile its loop must run.
    assert await asyncio.to_thread(eventually, lambda: not set(sockets()) - before)


async def test_a_counter_counts_though_the_reply_was_lost() -> None:
    """Against a real Valkey: the client saw an error, the increment happened."""
    with ValkeyServer() as server:
        async with FaultProxy("127.0.0.1", server.port) as proxy:
            redis = Redis.from_url(proxy.through(server.url), single_connection_client=True, retry=None)
            await redis.set("n", 0)
            proxy.set(ReplyLost(matching=b"INCR"))
            with pytest.raises((RedisError, OSError)):
                await redis.incr("n")
            proxy.heal()
            await redis.aclose()
            assert proxy.injected[ReplyLost] == 1
        async with Redis.from_url(server.url) as direct:
            assert await direct.get("n") == b"1"


async def test_a_row_is_committed_though_the_reply_was_lost() -> None:
    """Against a real PostgreSQL: the client saw an error, the row is there once."""
    with PostgreSQLServer(fsync=False) as server:
        async with FaultProxy("127.0.0.1", server.port) as proxy:
            connection = await asyncpg.connect(proxy.through(server.url))
            await connection.execute("CREATE TABLE t (n int)")
            proxy.set(ReplyLost(matching=b"INSERT"))
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
                await connection.execute("INSERT INTO t VALUES (1)")
            connection.terminate()
        direct = await asyncpg.connect(server.url)
        assert await direct.fetchval("SELECT count(*) FROM t") == 1
        await direct.close()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Latency, {"delay": 0.1, "jitter": 0.2}),
        (Bandwidth, {"bytes_per_second": 0}),
        (Drip, {"interval": 0}),
        (Sliced, {"smallest": 0}),
        (Cut, {"at": -1}),
        (Reset, {"probability": 1.5}),
        (ReplyLost, {"probability": 0}),
        (LateReply, {"hold": 0}),
        (Stall, {"direction": "sideways"}),
        (Flapping, {"period": 0}),
        (SlowClose, {"delay": 0}),
    ],
)
def test_impossible_faults_are_refused(kind: type[Fault], options: dict[str, object]) -> None:
    """A fault that could not strike is an error where it is written."""
    with pytest.raises(ValueError, match=r"is |<="):
        kind(**options)
