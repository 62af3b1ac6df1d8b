#!/bin/sh
# Gets Prometheus for the tests that want it, without root: get_prometheus.sh FOLDER
#
# Nothing happens if it is on PATH or in FOLDER already. Otherwise the system's own package is downloaded with apt-get and
# unpacked into FOLDER. Where that does not work the tests are skipped, and this says why; it never fails.
set -u
folder=$1

if command -v prometheus >/dev/null && command -v promtool >/dev/null || [ -x "$folder/usr/bin/prometheus" ]; then
    exit 0
fi

skip() {
    echo "Tests with a real Prometheus will be skipped: $1. Install prometheus, or put it below $folder."
    exit 0
}

command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || skip "it is not installed, and there is no apt-get"

work=$(mktemp -d) || skip "there is no room for a temporary folder"
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
options="-q=2 -o APT::Sandbox::User=root -o Acquire::http::Timeout=15 -o Acquire::https::Timeout=15 -o Acquire::Retries=1"

cd "$work" || exit 0
if ! apt-get $options download prometheus >"$work/log" 2>&1; then
    # No package lists here: fetch them into the temporary folder, which needs no root either.
    own="-o Dir::State::lists=$work/lists -o Dir::Cache=$work/cache"
    { apt-get $options $own update && apt-get $options $own download prometheus; } >>"$work/log" 2>&1 ||
        skip "apt-get cannot download it ($(tail -n 1 "$work/log"))"
fi
cd - >/dev/null || exit 0

rm -rf "$folder.new"
mkdir -p "$folder.new"
dpkg-deb -x "$work"/prometheus_*.deb "$folder.new" || skip "its package cannot be unpacked"
rm -rf "$folder"
mv "$folder.new" "$folder"
"$folder/usr/bin/prometheus" --version >/dev/null 2>&1 || { rm -rf "$folder"; skip "the package does not run here"; }
