#!/bin/sh
# First start of a node in a container: find or make its swarm, `noded init` or `noded join`, then run what was asked for.
#
# With NODED_JOIN_CODE (or the file NODED_JOIN_CODE_FILE, a secret) the node joins by invite. Else the swarm's two keys are in the
# folder NODED_SWARM_FOLDER, a volume that the nodes of one compose file share: a node that has nobody to ask makes a new swarm and
# leaves them there for the others, one that has a bootstrap address waits for them. Whoever can read that folder can make
# members. Later starts find the configuration and go straight on.
set -eu
umask 077

data=${NODED_NODE_DATA_DIR:-/var/lib/noded}
shared=${NODED_SWARM_FOLDER:-/var/lib/noded-swarm}
code=${NODED_JOIN_CODE:-}
code_file=${NODED_JOIN_CODE_FILE:-}
unset NODED_JOIN_CODE NODED_JOIN_CODE_FILE NODED_SWARM_FOLDER # no settings of the node; and no child needs the code

first_start() {
    if [ -n "$code_file" ]; then
        noded join --file "$code_file" >/dev/null
    elif [ -n "$code" ]; then
        printf '%s\n' "$code" | noded join - >/dev/null # not as an argument: those are seen by everybody
    elif [ -n "${NODED_NETWORK_BOOTSTRAP:-}" ]; then
        waited=0
        until [ -r "$shared/swarm-root.key" ]; do
            if [ "$waited" -ge 60 ]; then
                echo "noded: no swarm in $shared after 60 s: set NODED_JOIN_CODE (noded invite), or mount the folder" >&2
                exit 7
            fi
            sleep 1
            waited=$((waited + 1))
        done
        noded init --root "$shared" >/dev/null
    else
        noded init >/dev/null
    fi
}

# Whole or not at all: a peer may be reading. The root key comes last, for it is what peers wait for.
share() {
    [ -w "$shared" ] && [ -e "$data/swarm-root.key" ] || return 0
    for key in swarm.key swarm-root.key; do
        if [ ! -e "$shared/$key" ]; then
            cp "$data/$key" "$shared/.$key.new"
            mv "$shared/.$key.new" "$shared/$key"
        fi
    done
}

if [ "${1:-}" = noded ] && [ "${2:-}" = run ]; then
    [ -e "$data/noded.toml" ] || first_start
    share # at every start, so that a first one that was cut short is made good
fi
exec "$@"
