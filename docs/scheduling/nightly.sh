#!/usr/bin/env bash
# One night of an experiment: run it into a store of its own, and compare that with the last night's.
#
#   nightly.sh EXPERIMENT [STORES]
#
#   EXPERIMENT  the folder with its spec.yaml
#   STORES      the folder of the nights, by default runs/nightly: STORES/2026-01-31, and its log beside it
#   NIGHT       (environment) another date than today's: go on with that night
#   BASELINE    (environment) the store to compare with, in place of the last night's
#
# Prints nothing where all is well, so that cron writes no mail; else the night's log.
# Exit status: 0 all ran and nothing moved; 1 a run failed, or a metric moved; 2 something is wrong with what was asked;
# 75 the night before is still going on; 130 it was stopped.
set -euo pipefail

experiment=${1:?say which experiment}
stores=${2:-runs/nightly}
name=$(basename "$experiment")
night=${NIGHT:-$(date +%F)}
baseline=${BASELINE:-}
log=$stores/$night.$name.log

mkdir -p "$stores"
exec 9> "$stores/.$name.lock"
flock --nonblock 9 || { echo "$name: the night before is still going on" >&2; exit 75; }

if [[ -z $baseline ]]; then
  for earlier in "$stores"/????-??-??; do
    if [[ -d $earlier/$name && ${earlier##*/} < $night ]]; then baseline=$earlier; fi
  done
fi

status=0
{
  qwenlab run "$experiment" --store "$stores/$night" &&
    if [[ -n $baseline ]]; then
      qwenlab runs diff "$baseline" "$stores/$night" --experiment "$name" --exit-code
    fi
} > "$log" 2>&1 || status=$?

if ((status)); then cat "$log" >&2; fi
exit "$status"
