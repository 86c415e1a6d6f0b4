#!/usr/bin/env bash
# create-token.sh PARTICIPANT [SECONDS]
# Invites one participant: prints a join token, single use, for this name alone. It is shown only now.
# SECONDS is its life: a day unless said otherwise, at most 30 days.
#
#   create-token.sh bank
#   create-token.sh clinic 604800
set -euo pipefail
. "$(dirname "$0")/common.sh"
arguments 1 2 "$@"

participant=$(quoted "$1")
seconds=$(number "${2:-0}")
call CreateJoinToken "{\"request_id\": $(request_id), \"participant_id\": $participant, \"ttl_seconds\": $seconds}"
