#!/usr/bin/env bash
# Run all parts of benchmarks/gpu.py, the most informative first, each in its own process with a time limit in seconds:
#   bash benchmarks/gpu.sh [--tiny] [--output DIR]
# Tables: OUTPUT/results.md (outputs/gpu). LIMITS="latency=60 compiled=0" changes limits; 0 leaves a part out.
cd "$(dirname "$0")/.." || exit
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"
for entry in environment=60 correctness=90 latency=150 fsdp2=120 training=120 compiled=240 attention=60; do
    part=${entry%=*} limit=${entry#*=}
    for own in $LIMITS; do [ "${own%=*}" = "$part" ] && limit=${own#*=}; done
    [ "$limit" = 0 ] && continue
    timeout "$limit" "${PYTHON:-python}" benchmarks/gpu.py --parts "$part" "$@" || echo "$part: exit status $?"
done
