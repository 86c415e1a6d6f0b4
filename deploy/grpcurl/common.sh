# What the scripts of this folder share: how the coordinator is reached, and how a call is made. Sourced, never run.
#
#   ACCORD_ADMIN    HOST:PORT of the admin listener             (default: 127.0.0.1:8445)
#   ACCORD_OPERATOR folder with operator.pem, operator.key and ca.pem, as `accord-coordinator operator create` writes it
#                   (default: ~/.config/accord)
#   GRPCURL         the program                                 (default: grpcurl)
# shellcheck shell=bash

ACCORD_ADMIN=${ACCORD_ADMIN:-127.0.0.1:8445}
ACCORD_OPERATOR=${ACCORD_OPERATOR:-$HOME/.config/accord}
GRPCURL=${GRPCURL:-grpcurl}

die() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit "${2:-1}"
}

# Prints the comment at the head of the script, which is its manual.
usage() {
  sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p}' "$0"
}

# arguments LEAST MOST "$@": ends with the manual for -h, and with 2 for a wrong number of arguments.
arguments() {
  local least=$1 most=$2
  shift 2
  case ${1:-} in
    -h | --help)
      usage
      exit 0
      ;;
  esac
  if [ $# -lt "$least" ] || [ $# -gt "$most" ]; then
    usage >&2
    exit 2
  fi
}

# A text as JSON. What a person types has no control characters.
quoted() {
  case $1 in
    *[[:cntrl:]]*) die "write the text on one line, without tabs" 2 ;;
  esac
  printf '"%s"' "$(printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g')"
}

# A number as JSON.
number() {
  case $1 in
    '' | *[!0-9]*) die "$1 is not a number" 2 ;;
  esac
  printf '%s' "$1"
}

# An id that makes the repeat of a call harmless: ACCORD_REQUEST_ID repeats an earlier one, whose answer was lost.
request_id() {
  printf '"%s"' "${ACCORD_REQUEST_ID:-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')}"
}

# call METHOD JSON: prints the answer; grpcurl says on standard error what was refused, and why.
call() {
  local file
  command -v "$GRPCURL" >/dev/null || die "$GRPCURL is missing: install grpcurl, or name it in GRPCURL" 127
  for file in ca.pem operator.pem operator.key; do
    [ -r "$ACCORD_OPERATOR/$file" ] ||
      die "cannot read $ACCORD_OPERATOR/$file: name the folder of your certificate in ACCORD_OPERATOR" 3
  done
  "$GRPCURL" -connect-timeout 5 -cacert "$ACCORD_OPERATOR/ca.pem" -cert "$ACCORD_OPERATOR/operator.pem" \
    -key "$ACCORD_OPERATOR/operator.key" -d "$2" "$ACCORD_ADMIN" "accord.v1.AdminService/$1"
}
