"""Reading an engine's facts from its pages."""

import httpx
import pytest

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


async def test_an_engine_with_the_plugin_tells_everything() -> None:
    client = engine(
        {
            "http://e:1/v1/models": MODELS,
            "http://e:1/version": '{"version": "0.31.0"}',
            "http://e:1/metrics": METRICS,
            "http://e:1001/metrics": STATE,
        }
    )
    info = await probe.read_info(client, "http://e:1", "http://e:1001/metrics")
    assert info.models == ("m", "lora")
    assert (info.order, info.plugin_version, info.vllm_version) == ("rlt", "0.1.0", "0.32.0")
    assert (info.block_size, info.capacity_blocks) == (32, 255)


async def test_without_the_plugin_the_engines_own_page_serves() -> None:
    client = engine({"http://e:1/v1/models": MODELS, "http://e:1/metrics": METRICS, "http://e:1001/metrics": None})
    info = await probe.read_info(client, "http://e:1", "http://e:1001/metrics")
    assert (info.order, info.plugin_version, info.vllm_version) == (None, None, None)
    assert (info.block_size, info.capacity_blocks) == (32, 255)


async def test_an_engine_that_does_not_answer_raises() -> None:
    with pytest.raises(httpx.ConnectError):
        await probe.read_info(engine({"http://e:1/v1/models": None}), "http://e:1", None)
    with pytest.raises(httpx.HTTPStatusError):
        await probe.read_info(engine({}), "http://e:1", None)


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
