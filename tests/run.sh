#!/usr/bin/env bash
# Every check of the project; what it is given goes to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}

bash deploy/install.sh train,quantization,console,embedded,flower,metrics,tracing,simulate,plot,docs,dev
# The tests of the console drive a real browser; without one they say that they did not run.
if ! command -v chromium >/dev/null && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends chromium >/dev/null
fi

"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/lint-imports" --no-cache
"$venv/bin/mypy" &
types=$!
# A file stays in one process, whose tests share fleets and models. Three processes on two cores: many
# tests wait for leases and timeouts.
"$venv/bin/pytest" --numprocesses 3 --dist loadfile --no-loadscope-reorder "$@"
wait "$types"
