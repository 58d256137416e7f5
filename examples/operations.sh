#!/usr/bin/env bash
# A job is killed, resumed, inspected, verified, converted, and loaded in PyTorch.
#
# examples/operations.sh [FOLDER]
set -euo pipefail
folder=${1:-runs/operations}
train=(python examples/batch_norm.py --folder "$folder" --epochs 4)

"${train[@]}" &
until ls "$folder"/ckpt-*.h5 2>/dev/null; do sleep 0.05; done
kill -KILL $! && wait $! || echo "killed"
"${train[@]}" # continues

python -m fastvar inspect "$folder"
python -m fastvar verify "$folder"
latest=$(ls -t "$folder"/ckpt-*.h5 | head -1)
python -m fastvar convert "$latest" "$folder/model.safetensors" --weights-only --names torch --overwrite
python examples/in_torch.py "$folder/model.safetensors"
