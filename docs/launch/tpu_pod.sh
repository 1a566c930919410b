#!/usr/bin/env bash
# Trains on a TPU slice: creates it, installs, starts the same command on every host.
#   ./tpu_pod.sh NAME ZONE ACCELERATOR_TYPE RUNTIME_VERSION
# e.g. ./tpu_pod.sh hrnet europe-west4-b v5litepod-16 v2-alpha-tpuv5-lite
# Check the setting first, it costs nothing:
#   python -m hrnet_jax.tools.preflight --config=$CONFIG --topology=v5e:4x4 $OPTIONS
set -euo pipefail
USAGE="NAME ZONE ACCELERATOR_TYPE RUNTIME_VERSION are needed"
NAME=${1:?$USAGE} ZONE=${2:?$USAGE} TYPE=${3:?$USAGE} RUNTIME=${4:?$USAGE}
REPOSITORY=${REPOSITORY:?where to clone this project from}
DATA=${DATA:?folder of the data set that every host sees, e.g. a mounted disk}
WORKDIR=${WORKDIR:?folder of the run that every host sees, e.g. gs://BUCKET/runs/w48}
CONFIG=${CONFIG:-configs/cityscapes.py:variant=w48}
OPTIONS=${OPTIONS:---config.model.dtype=bfloat16 --config.batch_size=32}

everywhere() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

gcloud compute tpus tpu-vm describe "$NAME" --zone="$ZONE" >/dev/null 2>&1 ||
  gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" \
    --accelerator-type="$TYPE" --version="$RUNTIME"

everywhere "set -e
  test -d hrnet || git clone --depth=1 $REPOSITORY hrnet
  cd hrnet
  # Ubuntu 22.04, which the machines run, has Python 3.10 by default, but 3.11 as a package.
  command -v python3.11 || { sudo apt-get update -q && sudo apt-get install -yq python3.11-venv; }
  test -d .venv || python3.11 -m venv .venv
  .venv/bin/pip install -q -e '.[tpu]'"

# The hosts find each other by the machine's own description of the slice. Exit code 75 means that
# the run was told to end and has saved its state: the same command continues it.
everywhere "cd hrnet && .venv/bin/python train.py --config=$CONFIG $OPTIONS \
  --config.data.root=$(printf %q "$DATA") --workdir=$(printf %q "$WORKDIR")"
