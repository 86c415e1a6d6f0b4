#!/usr/bin/env bash
# pause-run.sh RUN
# Lets the open round end, and begins no other.
#
#   pause-run.sh support
set -euo pipefail
. "$(dirname "$0")/common.sh"
arguments 1 1 "$@"

name=$(quoted "runs/${1#runs/}")
call PauseRun "{\"request_id\": $(request_id), \"name\": $name}"
