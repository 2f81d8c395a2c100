"""Reading an engine's facts from its pages."""

import asyncio
import contextlib
import errno
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.config import configure
from router.engines import probe

METRICS = """# HELP vllm:cache_config_info x
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="32",cache_dtype="a \\"b\\"",num_gpu_blocks="256"} 1.0
vllm:cache_config_info_other 3.0
"""
STATE = """leafcutter_engine_info{order="rlt",plugin_version="0.1.0",vllm_version="0.32.0"} 1.0
leafcutter_engine_capacity_blocks 255.0
leafcutter_engine_phases_total 3.0
"""


def engine(pages: dict[str, str | None]) -> httpx.AsyncClient:
    """A client to engines whose pages are given by URL; None: the connection is refused; absent: 404."""

    def answer(request: httpx.Request) -> httpx.Response:
        text = pages.get(str(request.url), "")
        if text is None:
            raise httpx.ConnectError("refused")
        return httpx.Response(200 if text else 404, text=text)

    return httpx.AsyncClient(transport=httpx.MockTransport(answer))


MODELS = '{"data": [{"id": "m"}, {"id": "lora"}]}'


async def read(pages: dict[str, str | None]) -> probe.Report:
    return await probe.read_report(engine(pages), "http://e:1", "http://e:1001/metrics")


async def test_an_engine_with_the_plugin_tells_everything() -> None:
    info, oddities = await read(
        {
            "http://e:1/v1/models": MODELS,
            "http://e:1/version": '{"version": "0.31.0"}',
            "http://e:1/metrics": METRICS,
            "http://e:1001/metrics": STATE,
        }
    )
    assert info.models == ("m", "lora")
    assert (info.order, info.plugin_version, info.vllm_version) == ("rlt", "0.1.0", "0.32.0")
    assert (info.block_size, info.capacity_blocks) == (32, 255)
    assert oddities == ()


async def test_without_the_plugin_the_engines_own_page_serves() -> None:
    info, _ = await read({"http://e:1/v1/models": MODELS, "http://e:1/metrics": METRICS, "http://e:1001/metrics": None})
    assert (info.order, info.plugin_version, info.vllm_version) == (None, None, None)
    assert (info.block_size, info.capacity_blocks) == (32, 255)


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (None, "unreachable (ConnectError)"),
        ("", "/v1/models answers 404"),
        ("hello", "not JSON"),
        ("[]", "answers a list where an object was expected"),
        ("null", "answers null"),
        ("{}", "nothing under `data`"),
        ('{"data": null}', "null under `data`"),
        ('{"data": {}}', "an object under `data`"),
        ('{"data": []}', "lists no model that has a name (0 entries)"),
        ('{"data": [{}, null, 3, {"id": 7}, {"id": ""}, {"id": "a\\nb"}, {"id": "\\ud800"}]}', "(7 entries)"),
        ('{"data": [{"id": "' + "x" * 2000 + '"}]}', "lists no model"),
        ("[" * 100_000, "nested too deeply"),
        ('{"data":' * 100_000, "nested too deeply"),
        ('{"data": ' + "9" * 5000 + "}", "not JSON"),
        ('{"data": [' + " " * probe.MOST_BYTES, "more than 2097152 bytes"),
    ],
)
async def test_models_that_cannot_be_used_are_refused_in_words(models: str | None, words: str) -> None:
    with pytest.raises(probe.BadAnswer) as caught:
        await read({"http://e:1/v1/models": models})
    assert words in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("change", "field", "expected", "words"),
    [
        (('"256"', '"-1"'), "capacity_blocks", None, "num_gpu_blocks is '-1'"),
        (('"256"', '"NaN"'), "capacity_blocks", None, "num_gpu_blocks is 'NaN'"),
        (('"256"', '"+Inf"'), "capacity_blocks", None, "num_gpu_blocks is '+Inf'"),
        (('"256"', f'"1{"0" * 400}"'), "capacity_blocks", None, "num_gpu_blocks is '1000"),
        (('"256"', '"\u00b2"'), "capacity_blocks", None, "num_gpu_blocks is"),
        (('"256"', '"None"'), "capacity_blocks", None, None),
        (('"256"', '"1"'), "capacity_blocks", None, None),
        (('"256"', '"3e+06"'), "capacity_blocks", 2_999_999, None),
        (('"32"', '"0"'), "block_size", None, "block_size is '0'"),
        (("} 1.0", "} 1.0.0"), "block_size", 32, None),
    ],
)
async def test_a_fact_that_cannot_be_true_is_left_out_and_named(
    change: tuple[str, str], field: str, expected: object, words: str | None
) -> None:
    info, oddities = await read({"http://e:1/v1/models": MODELS, "http://e:1/metrics": METRICS.replace(*change)})
    assert getattr(info, field) == expected
    assert (words is None) == (not oddities)
    assert all(words is None or words in each for each in oddities)


@pytest.mark.parametrize("capacity", ["-1", "NaN", "Inf", "1e400", "x", "0"])
async def test_a_capacity_of_the_plugin_that_cannot_be_true_gives_way_to_the_engines_own(capacity: str) -> None:
    state = STATE.replace("255.0", capacity)
    info, oddities = await read(
        {"http://e:1/v1/models": MODELS, "http://e:1/metrics": METRICS, "http://e:1001/metrics": state}
    )
    assert info.capacity_blocks == 255
    assert "capacity_blocks is" in oddities[0]


@pytest.mark.parametrize("version", ["[]", "null", '{"version": 3}', '{"version": "a\\nb"}', "[" * 100_000, "no"])
async def test_an_odd_version_costs_nothing_else(version: str) -> None:
    info, _ = await read({"http://e:1/v1/models": MODELS, "http://e:1/version": version})
    assert (info.models, info.vllm_version) == (("m", "lora"), None)


async def test_models_without_a_usable_name_are_left_out_and_named() -> None:
    info, oddities = await read({"http://e:1/v1/models": '{"data": [{"id": "m"}, {"id": 3}, {"id": "m"}]}'})
    assert info.models == ("m",)
    assert oddities == ("1 models without a name of 1 to 1024 printable characters",)


async def test_the_first_models_of_too_many_are_taken() -> None:
    ids = ",".join(f'{{"id": "m{number}"}}' for number in range(probe.MOST_MODELS + 1))
    info, oddities = await read({"http://e:1/v1/models": f'{{"data": [{ids}]}}'})
    assert len(info.models) == probe.MOST_MODELS
    assert "4097 models" in oddities[0]


CAPACITY = "leafcutter_engine_capacity_blocks"
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["data", "id", "version"]), inner),
)


@given(ANYTHING, ANYTHING, st.text(), st.text())
async def test_whatever_an_engine_says_it_is_read_or_refused(
    models: object, version: object, metrics: str, state: str
) -> None:
    pages: dict[str, str | None] = {
        "http://e:1/v1/models": json.dumps({"data": [{"id": "m"}, models]}),
        "http://e:1/version": json.dumps(version),
        "http://e:1/metrics": f'vllm:cache_config_info{{num_gpu_blocks="{metrics}"}} {metrics}',
        "http://e:1001/metrics": f'{CAPACITY} {state}\nleafcutter_engine_info{{order="{state}"}} 1',
    }
    info, _ = await read(pages)
    assert info.capacity_blocks is None or 1 <= info.capacity_blocks <= probe.MOST_BLOCKS
    assert all(name.isprintable() for name in info.models)
    with contextlib.suppress(probe.BadAnswer):
        await read({**pages, "http://e:1/v1/models": json.dumps(models)})


def test_no_page_takes_long_to_read() -> None:
    """Each of these takes hours if the pattern goes back and tries again at every character."""
    for labels in ("a" * 16_000, 'a="\\' * 4000, 'a="' * 5000, "a" * 16_000 + '="'):
        probe.samples(f"vllm:cache_config_info{{{labels}}} 1\n" * 100, "vllm:")


# --- over a socket ----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def raw_engine(*parts: bytes, drip: bytes = b"") -> AsyncIterator[str]:
    """An engine that answers anything with these bytes, and then with `drip` again and again."""

    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.writelines(parts)
            while drip:
                writer.write(drip)
                await writer.drain()
                await asyncio.sleep(0.001)
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("answer", "drip", "words"),
    [
        (b"", b"", "not valid HTTP"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", b"", "not valid HTTP"),
        (b"HTTP/1.1 099 Odd\r\n\r\n", b"", "not valid HTTP"),
        (b"HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n", b"", "answers 999"),
        (b"HTTP/1.1 307 Elsewhere\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", b"", "not followed"),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", b"", ""),
        (OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\nok", b"", "not valid HTTP"),
        (OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n", b"", "not valid HTTP"),
        (OK + b"content-length: 9\r\n\r\nok", b"", "not valid HTTP"),
        (OK + b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\nok", b"", "compressed"),
        (OK + b"content-length: 100000\r\n\r\n", b"x", "not answered in full within 0.3 s"),
        (OK, b"x: y\r\n", "/health"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", "not answered in full within 0.3 s"),
        (OK + b"\r\n", b"x" * 100_000, "more than 2097152 bytes"),
    ],
)
async def test_health_that_is_no_clean_answer_in_time_is_a_failure_in_words(
    answer: bytes, drip: bytes, words: str
) -> None:
    async with (
        raw_engine(answer, drip=drip) as url,
        probe.open_client(configure(health_check_timeout_secs=0.3)) as client,
    ):
        with pytest.raises(probe.BadAnswer) as caught:
            await probe.check_health(client, url)
        assert words in str(caught.value)
        assert not caught.value.ours
        assert not await probe.healthy(client, url)


async def test_cookies_of_engines_are_not_kept() -> None:
    answer = OK + b"set-cookie: a=b\r\ncontent-length: 0\r\n\r\n"
    async with raw_engine(answer) as url, probe.open_client(configure()) as client:
        await probe.check_health(client, url)
        assert not list(client.cookies.jar)


async def test_a_lack_of_file_descriptors_is_not_the_engines_fault() -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("failed") from OSError(errno.EMFILE, "Too many open files")

    async with httpx.AsyncClient(transport=httpx.MockTransport(fail)) as client:
        with pytest.raises(probe.BadAnswer, match="no file descriptor left") as caught:
            await probe.check_health(client, "http://e:1")
        assert caught.value.ours


@pytest.mark.parametrize(
    ("url", "offset", "expected"),
    [
        ("http://h:8000", 1000, "http://h:9000/metrics"),
        ("http://h", 1000, "http://h:1080/metrics"),
        ("https://h/", 1, "http://h:444/metrics"),
        ("http://[::1]:8000", 1000, "http://[::1]:9000/metrics"),
        ("http://h:65000", 1000, None),
    ],
)
def test_the_state_page_is_an_offset_away(url: str, offset: int, expected: str | None) -> None:
    assert probe.state_url(url, offset) == expected
