"""Who may be a member: certificates, the chains they form, revocations, and the one object that is asked.

`certificate` is one signed statement, `chain` how several lead from the swarm's root key to a member and how new ones are issued, `refusal`
why one was not accepted. All sans-IO: the time is an argument, in milliseconds since 1970.
"""
