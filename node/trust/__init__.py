"""Trust in a daemon: the certificate it shows, the revocations it has ever heard of, and the swarm's document kept with others.

`log` is the file that makes a revoked node stay out over restarts, `membership` puts the pieces together, `report` is what status and people see.
"""
