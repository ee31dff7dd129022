#!/usr/bin/env bash
# Every check and measurement that needs a GPU, in one call of at most nine minutes, without a network; results in OUT.
# With --dry-run the same on a CPU with small models, to see that no part of it fails.
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

python benchmarks/gpu.py --output_dir "${OUT:-gpu_results}" "${@/--dry-run/--dry_run}"
