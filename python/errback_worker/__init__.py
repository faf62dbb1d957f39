"""Python functions as jobs of errback, a pool of worker processes for Rust programs.

The host starts ``python3 -m errback_worker MODULE ...``; this package answers its calls. What a module of tasks needs
of it is here: the decorator, the ways to stop early, and a helper for numpy.

This one file must be readable by any Python, as old as it may be: it says which one is needed.
"""

import os
import sys

if sys.version_info < (3, 9):
    _SENTENCE = "Python 3.9 or later is needed, and this is %d.%d (%s)" % (
        sys.version_info[0],
        sys.version_info[1],
        sys.executable,
    )
    if "ERRBACK_WORKER" in os.environ:
        sys.stderr.write("errback worker: " + _SENTENCE + "\n")
        sys.exit(78)
    raise ImportError("errback_worker: " + _SENTENCE)

__version__ = "0.1.0"

from errback_worker._cancel import JobCancelled, cancel_requested
from errback_worker._tasks import task
from errback_worker._values import as_numpy

__all__ = ["JobCancelled", "__version__", "as_numpy", "cancel_requested", "task"]
