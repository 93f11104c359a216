#!/usr/bin/env bash
# One night of an experiment: run it into a store of its own, and compare it with the previous night's store.
#
#   nightly.sh EXPERIMENT [STORES]
#
#   EXPERIMENT  the folder with its spec.yaml
#   STORES      the folder with one store and one log per night, by default runs/nightly: STORES/2026-01-31
#   NIGHT       (environment) the date of the night to run or continue, by default today
#   BASELINE    (environment) the store to compare with, by default the previous night's
#
# Prints nothing if all went well, so that cron sends no mail; else the night's log.
# Exit status: 0 all ran and nothing moved; 1 a run failed, or a metric moved; 2 wrong arguments;
# 75 the previous night is still running; 130 it was stopped.
set -euo pipefail

experiment=${1:?give the experiment}
stores=${2:-runs/nightly}
name=$(basename "$experiment")
night=${NIGHT:-$(date +%F)}
baseline=${BASELINE:-}
log=$stores/$night.$name.log

mkdir -p "$stores"
exec 9> "$stores/.$name.lock"
flock --nonblock 9 || { echo "$name: the previous night is still running" >&2; exit 75; }

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
