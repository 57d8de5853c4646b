#!/bin/sh
# Installs what tests/lab needs besides root: network tools, the packet filter, a UPnP router, iperf3 for comparison.
#
# Only as root, only with apt-get, and only what is missing; LAB=no leaves the system as it is. Never fails: without these the
# tests in tests/lab are skipped, and say why.
set -eu

missing=
while read -r program package; do
    PATH=/usr/sbin:/sbin:$PATH command -v "$program" >/dev/null 2>&1 || missing="$missing $package"
done <<EOF
ip iproute2
nft nftables
miniupnpd miniupnpd-nftables
iperf3 iperf3
EOF
[ -n "$missing" ] || exit 0
if [ "${LAB:-}" = no ] || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    exit 0
fi
echo "noded: installing$missing for the NAT lab (LAB=no leaves them out)"
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086  # a list of packages
install() { apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1; }
install || { apt-get update -qq >/dev/null 2>&1 && install; } ||
    echo "noded: they could not be installed; tests/lab will be skipped or shortened" >&2
exit 0
