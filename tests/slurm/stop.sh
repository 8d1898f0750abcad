#!/bin/bash
# Stops what start.sh started in DIR, by its PID files alone.
D=$(realpath "$1")
for f in "$D"/run/slurmd-*.pid "$D"/run/slurmctld.pid "$D"/run/munged.pid; do
  [ -e "$f" ] && kill "$(cat "$f")" 2>/dev/null
done
exit 0
