#!/usr/bin/env bash
# Is a service ready? Exit status 0 if http://127.0.0.1:PORT/readyz answers 200. Needs bash alone, so
# that images need no HTTP client.
#
#   deploy/probe.sh PORT [PATH]
set -euo pipefail
answer=
{ exec 3<>"/dev/tcp/127.0.0.1/$1"; } 2>/dev/null || exit 1
printf 'GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n' "${2:-/readyz}" >&3
read -r -t 2 answer <&3 || true
[[ $answer == *" 200 "* ]]
