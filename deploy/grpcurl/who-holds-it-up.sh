#!/usr/bin/env bash
# who-holds-it-up.sh RUN
# Says whom or what a run waits for: each participant by name, since when, when it was last heard, why, and what to do
# about it; and who is out of the round.
#
#   who-holds-it-up.sh support
set -euo pipefail
. "$(dirname "$0")/common.sh"
arguments 1 1 "$@"

name=$(quoted "runs/${1#runs/}")
call ExplainRun "{\"name\": $name}"
