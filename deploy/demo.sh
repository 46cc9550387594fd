#!/usr/bin/env bash
# A whole FLUX LoRA job with a tiny model on an emulated fleet; ends with the published file.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)

bash "$here/deploy/install.sh" train,console
exec "${VENV:-$here/.venv}/bin/training-worker" demo "$@"
