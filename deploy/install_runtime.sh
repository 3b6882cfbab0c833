#!/usr/bin/env bash
# Installs in an image what collect_runtime.sh found to be needed, and what https is checked by. Used by the
# Dockerfile.
set -euo pipefail
cd /opt/llava
apt-get update -q
# shellcheck disable=SC2046  # one package a word
DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $(cat packages) ca-certificates
rm -rf /var/lib/apt/lists/* packages
echo /opt/llava/lib >/etc/ld.so.conf.d/llava.conf
ldconfig
