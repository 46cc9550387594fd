#!/usr/bin/env bash
# Run a whole FLUX LoRA job with a miniature model on an emulated fleet, and print the published file.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)

bash "$here/deploy/install.sh" train,embedded,flower
exec "${VENV:-$here/.venv}/bin/training-worker" demo "$@"
