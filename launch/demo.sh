#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The whole system on a CPU: encode, train, validate, sample, export, sweep, fit.
# Each step resumes where an earlier call of this script stopped. A signal is passed on
# to the step under way, and the script ends with the status of the signal: 143 after
# SIGTERM, 130 after SIGINT, 129 after SIGHUP.
set -euo pipefail
cd "$(dirname "$0")/.."
RFJAX=${RFJAX:-rfjax}
step=

title() { printf '\n== %s\n' "$*"; }
run() { # COMMAND ...: in the background, since bash handles a signal only between steps
  "$@" &
  step=$!
  wait "$step"
  step=
}
unless_there() { # PATH COMMAND ...: runs the command that makes PATH
  local path=$1
  shift
  if [ ! -e "$path" ]; then run "$@"; fi
}
stop() { # STATUS
  trap '' TERM INT HUP
  if [ -n "$step" ]; then
    # Always SIGTERM: a Ctrl-C has reached the step already, and a second one would cut
    # its saving short.
    kill -TERM "$step" 2>/dev/null || true
    wait "$step" || true
  fi
  exit "$1"
}
trap 'stop 143' TERM
trap 'stop 130' INT
trap 'stop 129' HUP

title "emoji and their names -> latents and text states"
unless_there data/emoji \
  "$RFJAX" encode --config=configs/data/emoji.py --out=data/emoji
run "$RFJAX" verify --data=data/emoji

title "train a transformer of depth 3 (it memorises the pictures)"
run "$RFJAX" train --config=configs/emoji.py --workdir=runs/emoji

title "validation loss on captions that it never saw"
run "$RFJAX" evaluate --workdir=runs/emoji --json=runs/emoji/evaluation.json

title "pictures of seen and of held-out captions"
run "$RFJAX" sample --workdir=runs/emoji --sheet --out=runs/emoji/samples/sheet.png

title "PyTorch weights for diffusers"
unless_there export/emoji \
  "$RFJAX" export --workdir=runs/emoji --out=export/emoji

title "a first scaling study: three depths, three lengths, on emoji scenes"
unless_there data/emoji_scenes \
  "$RFJAX" encode --config=configs/data/emoji_scenes.py --out=data/emoji_scenes \
  --config.source.num_train=2048 --config.source.num_validation=256
run "$RFJAX" sweep --config=configs/sweeps/emoji_depth.py --workdir=runs/depth
run "$RFJAX" fit --runs=runs/depth --out=reports/depth

title "done; look at"
ls data/emoji/contact_sheet.png runs/emoji/samples/sheet.png export/emoji/README.md \
  reports/depth/index.html
