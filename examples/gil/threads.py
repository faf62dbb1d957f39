"""The same work in threads of one interpreter: ``threads.py TEXT THREADS``.

Prints how many words are done, line by line, and at last the seconds that it took and the results, as JSON.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import words


def main(path, threads):
    todo = words.load(path)
    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        results = []
        for result in pool.map(words.nearest, todo):
            results.append(result)
            if len(results) % 20 == 0:
                print(len(results), flush=True)
        seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "results": results}))


main(sys.argv[1], int(sys.argv[2]))
