#!/usr/bin/env bash
# Create .venv and install training-worker into it, pinned. Does nothing if that is up to date.
#   bash deploy/install.sh EXTRAS      (for example: train,console,flower; see pyproject.toml)
# PYTHON names the interpreter (3.11 or newer), VENV the folder.
set -euo pipefail
cd "$(dirname "$0")/.."

extras=${1:?usage: deploy/install.sh EXTRAS}
python=${PYTHON:-python3}
venv=${VENV:-.venv}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "training-worker needs Python 3.11 or newer; $python is $("$python" --version 2>&1)" >&2
  exit 1
fi

wanted=$(echo "$extras $PWD" | cat - pyproject.toml deploy/constraints.txt | cksum)
if [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]; then
  echo "installing training-worker[$extras] into $venv" >&2
  case $extras in *train*) echo "  this downloads PyTorch and takes 2 to 10 minutes" >&2 ;; esac
  rm -f "$venv/installed"  # until all of it is there
  "$python" -m venv "$venv"
  "$python" -P worker/local/pip_progress.py "$venv/install.log" "$venv/bin/python" \
    install --constraint deploy/constraints.txt --editable ".[$extras]"
  echo "$wanted" > "$venv/installed"
  echo "installed in $SECONDS s" >&2
fi
