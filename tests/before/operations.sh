#!/usr/bin/env bash
# examples/operations.sh without fastvar.
set -euo pipefail
folder=${1:-runs/before}
train=(python -m tests.before.batch_norm --folder "$folder" --epochs 4)

"${train[@]}" &
until ls "$folder"/ckpt-*.pkl 2>/dev/null; do sleep 0.05; done
kill -KILL $! && wait $! || echo "killed"
"${train[@]}" # continues

python -m tests.before.operations "$folder"
python examples/in_torch.py "$folder/model.safetensors"
