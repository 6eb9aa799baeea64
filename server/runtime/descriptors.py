"""The limit of open files, and the connections that it allows."""

import resource

from server import limits as server_limits


def raise_descriptor_limit(wanted: int = server_limits.DESCRIPTORS_WANTED) -> int:
    """Raises the soft limit of open files; returns how many connections fit.

    The limit rises towards ``wanted``; a higher limit stays. PITFALLS: over the descriptor limit
    accept loops thrash, so the server reads the limit at start and refuses early, with 503.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        soft = wanted
    return max(1, soft - server_limits.DESCRIPTORS_RESERVED)
