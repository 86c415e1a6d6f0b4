#!/usr/bin/env bash
# verify-audit-log.sh [EVENT CHAIN_DIGEST]
# Recomputes the audit log's hash chain; ends with 1 if an event is missing, was changed or is out of place.
# With a head that you noted earlier, somewhere else, it also finds that the end was cut off, or all was written anew.
#
#   verify-audit-log.sh
#   verify-audit-log.sh 1200 9c1e...
set -euo pipefail
. "$(dirname "$0")/common.sh"
arguments 0 2 "$@"
[ $# -ne 1 ] || die "name the event and its chain digest, or neither" 2

event=$(number "${1:-0}")
digest=$(quoted "${2:-}")
answer=$(call VerifyAuditLog "{\"expected_sequence\": $event, \"expected_chain_digest\": $digest}")
printf '%s\n' "$answer"
case $answer in
  *'"intact": true'*) ;;
  *) die "the audit log is BROKEN" ;;
esac
