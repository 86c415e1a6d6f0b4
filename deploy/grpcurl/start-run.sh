#!/usr/bin/env bash
# start-run.sh RUN
# Starts a run that was created: its first round forms.
#
#   start-run.sh support
set -euo pipefail
. "$(dirname "$0")/common.sh"
arguments 1 1 "$@"

name=$(quoted "runs/${1#runs/}")
call StartRun "{\"request_id\": $(request_id), \"name\": $name}"
