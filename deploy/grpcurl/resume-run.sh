#!/usr/bin/env bash
# resume-run.sh RUN
# Goes on with a paused run.
#
#   resume-run.sh support
set -euo pipefail
. "$(dirname "$0")/common.sh"
arguments 1 1 "$@"

name=$(quoted "runs/${1#runs/}")
call ResumeRun "{\"request_id\": $(request_id), \"name\": $name}"
