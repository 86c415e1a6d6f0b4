#!/usr/bin/env bash
# revoke-participant.sh PARTICIPANT REASON
# Shuts a participant out, for good: its next call is refused, and its open calls end within seconds.
# The reason is kept in the audit log and shown to the participant.
#
#   revoke-participant.sh clinic "left the federation"
set -euo pipefail
. "$(dirname "$0")/common.sh"
arguments 2 2 "$@"

name=$(quoted "participants/${1#participants/}")
reason=$(quoted "$2")
call RevokeParticipant "{\"request_id\": $(request_id), \"name\": $name, \"reason\": $reason}"
