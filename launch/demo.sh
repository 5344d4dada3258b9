#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The whole system on a CPU: encode, train, validate, sample, export, sweep, fit.
# Each step goes on where an earlier call of this script stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
RFJAX=${RFJAX:-rfjax}

title() { printf '\n== %s\n' "$*"; }
unless_there() { # PATH COMMAND ...: runs the command that makes PATH
  local path=$1
  shift
  if [ ! -e "$path" ]; then "$@"; fi
}

title "emoji and their names -> latents and text states"
unless_there data/emoji \
  "$RFJAX" encode --config=configs/data/emoji.py --out=data/emoji
"$RFJAX" verify --data=data/emoji

title "train a transformer of depth 3 (it learns the pictures by heart)"
"$RFJAX" train --config=configs/emoji.py --workdir=runs/emoji

title "validation loss on captions that it never saw"
"$RFJAX" evaluate --workdir=runs/emoji --json=runs/emoji/evaluation.json

title "pictures of seen and of held-out captions"
"$RFJAX" sample --workdir=runs/emoji --sheet --out=runs/emoji/samples/sheet.png

title "PyTorch weights for diffusers"
unless_there export/emoji \
  "$RFJAX" export --workdir=runs/emoji --out=export/emoji

title "a first scaling study: three depths, three lengths, on emoji scenes"
unless_there data/emoji_scenes \
  "$RFJAX" encode --config=configs/data/emoji_scenes.py --out=data/emoji_scenes \
  --config.source.num_train=2048 --config.source.num_validation=256
"$RFJAX" sweep --config=configs/sweeps/emoji_depth.py --workdir=runs/depth
"$RFJAX" fit --runs=runs/depth --out=reports/depth

title "done; look at"
ls data/emoji/contact_sheet.png runs/emoji/samples/sheet.png export/emoji/README.md \
  reports/depth/index.html
