#!/usr/bin/env bash
# Every check of the project; what it is given goes to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}

bash deploy/install.sh train,quantization,console,embedded,flower,metrics,tracing,simulate,plot,docs,wandb,mlflow,dev
# The tests of the console drive a real browser, and memory is traced with a little C++; without these
# programs the tests say that they did not run.
missing=()
command -v chromium >/dev/null || missing+=(chromium)
command -v g++ >/dev/null || missing+=(g++)
if [ "${#missing[@]}" -gt 0 ] && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "${missing[@]}" >/dev/null
fi

"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/lint-imports" --no-cache
"$venv/bin/mypy" &
types=$!
# Hundreds of processes import the project: they find it compiled after the first one.
unset PYTHONDONTWRITEBYTECODE
# A file stays in one process, whose tests share fleets and models. Three processes on two cores: many
# tests wait for leases and timeouts.
"$venv/bin/pytest" --numprocesses 3 --dist loadfile --no-loadscope-reorder "$@"
wait "$types"
