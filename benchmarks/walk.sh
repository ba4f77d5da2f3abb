#!/usr/bin/env bash
# A stranger's walk, timed: from this checkout to a wheel, an empty environment, a run, an ONNX file that is used without
# teacherless, and a script of the stranger's own under mypy and pyright.
#   bash benchmarks/walk.sh [PYTHON] [TORCH]        TORCH: what pip installs first, as torch==2.13.0
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd)
python=${1:-python3} torch=${2:-torch}
walk=$(mktemp -d) && cd "$walk"
unset PYTHONPATH
step() { echo "$SECONDS s: $*"; }

"$python" -m venv build && build/bin/pip -q install build
build/bin/python -m build -q --wheel --outdir dist "$repo" && step "$(basename dist/*.whl), $(du -k dist/*.whl | cut -f1) KB"
"$python" -m venv stranger && stranger/bin/pip -q install "$torch"
stranger/bin/pip -q install "$(echo dist/*.whl)[onnx]" && step "installed, $(stranger/bin/teacherless --version)"
stranger/bin/teacherless train dml --data digits --student resnet8 --epochs 5 --out first | tail -1 && step trained
stranger/bin/teacherless export first --format onnx --dynamic-batch --with-preprocessing --out onnx && step exported
stranger/bin/teacherless export first --format torch --which ensemble --out program && step "exported the ensemble"

cat > use.py <<'USE'
import numpy, onnxruntime
from sklearn.datasets import load_digits
x, y = load_digits(return_X_y=True)
images = numpy.round(x * 255 / 16).astype(numpy.uint8).reshape(-1, 8, 8, 1)
(logits,) = onnxruntime.InferenceSession("onnx/model.onnx").run(["logits"], {"images": images})
print(f"{100 * (logits.argmax(1) == y).mean():.1f} % of {len(y)} digits, without teacherless")
USE
stranger/bin/python use.py && step used

cat > own.py <<'OWN'
import torch
from torch import nn

import teacherless as tl

method = tl.DML(nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), temperature=2.0)
x, y = torch.randn(64, 4), torch.arange(64) % 3
optimizer, progress = torch.optim.SGD(method.param_groups(), lr=0.1), tl.progress(epochs=2)
for _ in range(2):
    for out in method.steps((x, y), progress):
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    progress.advance()
result = tl.train(tl.Plain(nn.Linear(4, 3)), (x, y), epochs=2, lr=0.05, quiet=True)
names: dict[str, nn.Module] = result.method.students()
loss: torch.Tensor = tl.losses.ce(names["student"](x), y).mean()
score: float = tl.evaluate(names, [(x, y)])["student"]["top1"]
classes = tl.PeerClassifier(peers=2, random_state=0).fit(x.numpy(), y.numpy()).predict(x.numpy())
print(f"{score:.1f}", loss.shape, len(classes))
OWN
stranger/bin/python own.py && step "own script ran"
stranger/bin/pip -q install mypy pyright
stranger/bin/mypy --strict --allow-untyped-calls own.py  # torch's backward has no types
step mypy
stranger/bin/pyright --pythonpath stranger/bin/python own.py
step pyright
rm -rf "$walk"
