"""How bytes cross: shared memory (one host), collectives (one cluster)."""
