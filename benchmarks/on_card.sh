#!/usr/bin/env bash
# All that wants a card, for when one is lent: at most 8 minutes, everything under one folder.
#
#   benchmarks/on_card.sh OUT [IMAGES]
#
# OUT gets machine.txt, tests.txt (the tests marked gpu), gpu.md and gpu.json, and log.txt. IMAGES is
# CIFAR-10 as folders (train/CLASS/...); without it, images are generated. What matters most runs
# first, and each row is written when it is measured. PYTHON names the interpreter.
set -u
[ $# -ge 1 ] || { echo "usage: benchmarks/on_card.sh OUT [IMAGES]" >&2; exit 2; }
out=$(mkdir -p "$1" && cd "$1" && pwd) || exit 2
images=${2:+$(cd "$2" && pwd)} || exit 2
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python}
export PYTHONUNBUFFERED=1

{
  nvidia-smi
  "$python" -c "import torch; print(torch.__version__, torch.version.cuda, torch.backends.cudnn.version())"
  nproc; uptime; git log --oneline -1
} > "$out/machine.txt" 2>&1

timeout 310 "$python" benchmarks/gpu.py --minutes 4.6 --out "$out" \
  --parts step epoch operations views fmicl mi ${images:+--images "$images"} > "$out/log.txt" 2>&1
measured=$?
timeout 150 "$python" -m pytest -m gpu -n 0 -q -o cache_dir="$out/.cache" > "$out/tests.txt" 2>&1
tested=$?
rm -rf "$out/.cache"
tail -n 3 "$out/tests.txt"
echo "gpu.py: $measured, pytest: $tested (124: out of time); everything is in $out"
exit $((measured > tested ? measured : tested))
