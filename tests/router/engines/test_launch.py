"""Engines as processes: what is started, how a failed start is told, and that nothing is left behind."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from router.config import UpConfig, configure_up
from router.engines.launch import Engine, Launch, advice, inherited, plan
from router.errors import SetupError

SERVER = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def launch(folder: Path, port: int, code: str = SERVER) -> Launch:
    command = (sys.executable, "-c", code, str(port))
    return Launch("engine-0", port, command, {"MARK": "1"}, folder / "logs" / "engine-0.log", alone=False)


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie that nobody reaped does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def gone(pid: int) -> bool:
    for _ in range(200):
        if not alive(pid):
            return True
        await asyncio.sleep(0.02)
    return False


async def test_an_engine_starts_and_stops_with_its_children(tmp_path: Path, unused_tcp_port: int) -> None:
    engine = await Engine.start(launch(tmp_path, unused_tcp_port))
    await engine.ready(20)
    child = int(engine.launch.log_file.read_text().rsplit("\nchild", 1)[1].split()[0])
    assert alive(child)
    await engine.stop()
    await engine.stop()
    assert not alive(engine.process.pid)
    assert await gone(child)


async def test_an_engine_that_ignores_sigterm_is_killed(
    tmp_path: Path, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.engines.launch.STOP_S", 0.2)
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVER
    engine = await Engine.start(launch(tmp_path, unused_tcp_port, stubborn))
    await engine.ready(20)
    await engine.stop()
    assert engine.process.returncode == -signal.SIGKILL


async def test_a_failed_start_shows_the_end_of_the_log_and_what_to_do(tmp_path: Path, unused_tcp_port: int) -> None:
    code = (
        "import sys; print('(Worker pid=7) ERROR 11-22 00:03:06 [core.py:1510] ValueError: larger than the KV cache')\n"
    )
    code += "[print('line', i) for i in range(100)]; sys.exit('RuntimeError: No module named vllm')"
    engine = await Engine.start(launch(tmp_path, unused_tcp_port, code))
    with pytest.raises(SetupError) as caught:
        await engine.ready(20)
    assert "ended with status 1" in str(caught.value)
    assert "| line 99" in str(caught.value)
    assert "| line 3\n" not in str(caught.value)
    assert "First error: ValueError: larger than the KV cache" in str(caught.value)
    assert "--kv-cache-gib" in str(caught.value)


async def test_a_start_that_never_answers_times_out(tmp_path: Path, unused_tcp_port: int) -> None:
    engine = await Engine.start(launch(tmp_path, unused_tcp_port, "import time; time.sleep(600)"))
    try:
        with pytest.raises(SetupError, match="was not ready after 1 s"):
            await engine.ready(0.6)
    finally:
        await engine.stop()


async def test_engines_end_when_their_parent_is_killed(tmp_path: Path, unused_tcp_port: int) -> None:
    code = f"""
import asyncio, pathlib, sys
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from router.engines.launch import Engine, Launch
async def main():
    command = (sys.executable, "-c", "import time; time.sleep(600)")
    engine = await Engine.start(Launch("e", 1, command, {{}}, pathlib.Path({str(tmp_path / "e.log")!r}), False))
    print(engine.process.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert alive(pid)
    os.kill(parent.pid, signal.SIGKILL)
    await parent.wait()
    assert await gone(pid)


def test_two_cpu_engines_share_the_cores(tmp_path: Path) -> None:
    launches = plan(configure_up(log_dir=str(tmp_path), engine_port=9100), str(tmp_path), gpus=0, cores=[0, 1, 2, 3])
    assert [launch.env["VLLM_CPU_OMP_THREADS_BIND"] for launch in launches] == ["0,1", "2,3"]
    assert [launch.url for launch in launches] == ["http://127.0.0.1:9100", "http://127.0.0.1:9101"]
    assert [launch.env["LEAFCUTTER_STATE_PORT"] for launch in launches] == ["10100", "10101"]
    assert all("--enforce-eager" in launch.command for launch in launches)
    assert all(launch.env["LEAFCUTTER_EVICTION"] == "rlt_gix" for launch in launches)


def test_one_engine_per_gpu_unless_more_are_asked_for() -> None:
    launches = plan(UpConfig(), "org/model", gpus=2, cores=[0])
    assert [launch.env["CUDA_VISIBLE_DEVICES"] for launch in launches] == ["0", "1"]
    assert not any("--gpu-memory-utilization" in launch.command for launch in launches)
    shared = plan(configure_up(engines=4), "org/model", gpus=2, cores=[0])
    assert [launch.env["CUDA_VISIBLE_DEVICES"] for launch in shared] == ["0", "1", "0", "1"]
    assert all("0.450" in launch.command for launch in shared)
    assert [launch.alone for launch in shared] == [False, False, True, True]


def test_options_reach_the_engines_command() -> None:
    config = configure_up(
        engines=1, num_gpu_blocks=64, block_size=32, max_model_len=2048, engine_args=("--enable-lora",)
    )
    command = plan(config, "org/model", gpus=1, cores=[0])[0].command
    for words in (("--num-gpu-blocks-override", "64"), ("--block-size", "32"), ("--max-model-len", "2048")):
        assert command[command.index(words[0]) + 1] == words[1]
    assert command[-1] == "--enable-lora"


@pytest.mark.parametrize(
    ("log_end", "words"),
    [
        ("OSError: [Errno 98] Address already in use", "--engine-port"),
        ("torch.OutOfMemoryError: CUDA out of memory", "Not enough memory"),
        ("We couldn't connect to 'https://huggingface.co'", "--model"),
        ("something else", "leafcutter doctor"),
    ],
)
def test_advice_fits_the_fault(log_end: str, words: str) -> None:
    assert words in advice(log_end)


def test_engines_do_not_inherit_the_gateways_keys() -> None:
    keys = ("API_KEY", "ADMIN_KEY", "CLIENT_KEYS", "WORKER_API_KEY")
    env = {f"LEAFCUTTER_{name}": "s3cret" for name in keys} | {"HF_TOKEN": "t", "LEAFCUTTER_POLICY": "lbgr"}
    assert inherited(env) == {"HF_TOKEN": "t", "LEAFCUTTER_POLICY": "lbgr"}
