#!/usr/bin/env bash
# roll-back.sh RUN ROUND
# Makes the adapter of an earlier round the one from which the next round trains; 0 is the initial adapter.
# The run has to be paused, with no round open; the newer adapters stay published.
#
#   pause-run.sh support && roll-back.sh support 2 && resume-run.sh support
set -euo pipefail
. "$(dirname "$0")/common.sh"
arguments 2 2 "$@"

name=$(quoted "runs/${1#runs/}")
round=$(number "$2")
call RollBackRun "{\"request_id\": $(request_id), \"name\": $name, \"adapter_round\": $round}"
