"""Several hosts on one machine: network namespaces, shaped links, CPU quotas, kernel counters."""

from shoal.lab.job import Outcome
from shoal.lab.lab import Lab

__all__ = ["Lab", "Outcome"]
