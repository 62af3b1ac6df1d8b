#!/bin/sh
# Gets Chromium for the tests that want a browser: get_chromium.sh
#
# Nothing happens if one is on PATH already. Root on a machine with apt-get, such as in a container, gets the system's own
# package installed. Everybody else is told what to do; the tests are skipped then. It never fails.
set -u

for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null && exit 0
done

skip() {
    echo "Tests with a real browser will be skipped: $1. Install chromium (apt-get install chromium) to run them."
    exit 0
}

[ "$(id -u)" = 0 ] || skip "there is none, and only root can install it"
command -v apt-get >/dev/null || skip "there is none, and no apt-get"

options="-q=2 -y --no-install-recommends -o Acquire::http::Timeout=15 -o Acquire::https::Timeout=15 -o Acquire::Retries=1"
log=$(mktemp) || skip "there is no room for a temporary file"
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
echo "Installing chromium for the tests with a real browser."
apt-get $options install chromium >"$log" 2>&1 ||
    { apt-get -q=2 update && apt-get $options install chromium; } >>"$log" 2>&1 ||
    skip "apt-get cannot install it ($(tail -n 1 "$log"))"
