# mypy: ignore-errors
# The text for `python3 -c`: a worker whose package is not installed, but comes in a variable of the environment.
# It must be readable by any Python, as old as it may be.
import os
import sys

if sys.version_info < (3, 9):
    sys.stderr.write("errback worker: Python 3.9 or later is needed, and this is %d.%d (%s)\n" % (
        sys.version_info[0], sys.version_info[1], sys.executable))
    sys.exit(78)

import importlib.util
import json


class Embedded:
    """Imports from source texts. `get_source` is what tracebacks ask for the lines."""

    def __init__(self, sources):
        self.sources = sources

    def find_spec(self, name, path=None, target=None):
        if name in self.sources:
            spec = importlib.util.spec_from_loader(name, self, is_package=name == "errback_worker")
            spec.origin = "<embedded>/" + name.replace(".", "/") + ".py"
            spec.has_location = False
            return spec

    def get_source(self, name):
        return self.sources[name]

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        spec = module.__spec__
        exec(compile(self.sources[spec.name], spec.origin, "exec", dont_inherit=True), module.__dict__)


sys.meta_path.insert(0, Embedded(json.loads(os.environ.pop("ERRBACK_WORKER_SOURCE"))))

from errback_worker.__main__ import main

main()
