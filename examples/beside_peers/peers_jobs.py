"""The jobs of the part `python`. As a program, it runs them in a multiprocessing.Pool, and says what that costs."""


def add(a, b):
    return a + b


def increment(n):
    return n + 1


def echo(data):
    return data


def main():
    import json
    import multiprocessing
    import sys
    import time

    jobs, items, size = map(int, sys.argv[1:])
    pool = multiprocessing.Pool(2)

    def say(metric, value, unit):
        line = {"bench": "D", "impl": "multiprocessing.Pool", "metric": metric, "value": value, "unit": unit}
        print(json.dumps(line), flush=True)

    def times(count, call):
        taken = []
        for i in range(-(count // 10) - 1, count):
            begin = time.perf_counter()
            call(i)
            taken.append(time.perf_counter() - begin)
        return sorted(taken[count // 10 + 1:])

    taken = times(jobs, lambda i: pool.apply(add, (i, 1)))
    say("job1_p50_us", taken[len(taken) // 2] * 1e6, "us")
    taken = times(5, lambda _: pool.map(increment, range(items)))
    say("map100k_best_per_s", items / taken[0], "items/s")
    data = bytes(size)
    taken = times(5, lambda _: pool.apply(echo, (data,)))
    say("echo_64MiB_GBps", size / taken[len(taken) // 2] / 1e9, "GB/s there and back")
    pool.terminate()


if __name__ == "__main__":
    main()
