#!/usr/bin/env bash
# Run all parts of benchmarks/gpu.py, the most informative first, each in its own process with a time limit in seconds:
#   bash benchmarks/gpu.sh [--tiny] [--output DIR]
# Tables: OUTPUT/results.md (outputs/gpu). All of it takes at most 8 minutes: after SECONDS_ALL (460) a part gets what is left.
# LIMITS="latency=60 compiled=0" changes limits; 0 leaves a part out.
cd "$(dirname "$0")/.." || exit
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"
began=$(date +%s)
for entry in environment=40 correctness=60 latency=130 training=130 fsdp2=60 compiled=150 attention=40 quantized=30 measures=60; do
    part=${entry%=*} limit=${entry#*=}
    for own in $LIMITS; do [ "${own%=*}" = "$part" ] && limit=${own#*=}; done
    left=$((${SECONDS_ALL:-460} - $(date +%s) + began))
    [ "$limit" -gt "$left" ] && limit=$left
    [ "$limit" -le 0 ] && { [ "$left" -le 0 ] && echo "$part: no time left"; continue; }
    timeout "$limit" "${PYTHON:-python}" benchmarks/gpu.py --parts "$part" "$@" || echo "$part: exit status $?"
done
