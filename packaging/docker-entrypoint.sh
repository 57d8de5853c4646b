#!/bin/sh
# First start of a node in a container: take or make the swarm's key, `noded init`, then run what was asked for.
#
# The key comes from NODED_SWARM_KEY (its printed form), else from the file NODED_SWARM_KEY_FILE: a secret, or a volume that
# the nodes of one compose file share. With neither, a node that has nobody to ask makes a new swarm and leaves the key in
# that file for the others; one that has a bootstrap address waits for it. Later starts find the configuration and go
# straight on.
set -eu
umask 077

data=${NODED_NODE_DATA_DIR:-/var/lib/noded}
shared=${NODED_SWARM_KEY_FILE:-/var/lib/noded-swarm/swarm.key}

first_start() {
    made=
    if [ ! -e "$data/swarm.key" ]; then
        made=$data/swarm.key
        if [ -z "${NODED_SWARM_KEY:-}" ] && [ -n "${NODED_NETWORK_BOOTSTRAP:-}" ]; then
            waited=0
            until [ -r "$shared" ]; do
                if [ "$waited" -ge 60 ]; then
                    echo "noded: no swarm key after 60 s: set NODED_SWARM_KEY, or mount the key at $shared" >&2
                    exit 7
                fi
                sleep 1
                waited=$((waited + 1))
            done
        fi
        if [ -n "${NODED_SWARM_KEY:-}" ]; then
            printf '%s\n' "$NODED_SWARM_KEY" >"$data/swarm.key"
        elif [ -r "$shared" ]; then
            cat "$shared" >"$data/swarm.key.new"
            mv "$data/swarm.key.new" "$data/swarm.key"
        fi
    fi
    # Its report holds the swarm's key, which has no place in a container's log.
    noded init >/dev/null || {
        code=$?
        rm -f "$made" # a key that was mistyped must not be kept for the next start
        exit "$code"
    }
}

if [ "${1:-}" = noded ] && [ "${2:-}" = run ]; then
    [ -e "$data/noded.toml" ] || first_start
    # At every start, so that a first one that was cut short is made good. Whole or not at all: a peer may be reading.
    if [ ! -e "$shared" ] && [ -w "$(dirname "$shared")" ]; then
        cp "$data/swarm.key" "$shared.new"
        mv "$shared.new" "$shared"
    fi
fi
unset NODED_SWARM_KEY # the node has it in a file; no child needs it in its environment
exec "$@"
