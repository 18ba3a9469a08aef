"""Processes that train together on this machine, through gloo, and never longer than they are allowed to."""

import multiprocessing
import os
import socket
import traceback
from contextlib import closing

import pytest

_CONTEXT = multiprocessing.get_context("spawn")


class RankPool:
    """Processes that call the same functions at the same time, kept for the next call."""

    def __init__(self, count=2):
        self.count = count
        self._workers = []

    def __call__(self, function, *args, limit=90):
        """Every rank's result of a function that a module has at its top; fails if it takes too long or raises."""
        if not self._workers:
            self._start()
        for _, connection in self._workers:
            connection.send((function, args))
        outcomes = []
        for rank, (_, connection) in enumerate(self._workers):
            if not connection.poll(limit):
                self.stop()
                pytest.fail(f"rank {rank} has not come back within {limit} s: the ranks wait for each other")
            outcomes.append(connection.recv())
        for rank, (_, error) in enumerate(outcomes):
            if error:
                self.stop()
                pytest.fail(f"rank {rank} raised\n{error}")
        return [result for result, _ in outcomes]

    def stop(self):
        """End the processes."""
        for process, connection in self._workers:
            connection.close()
            process.kill()
            process.join()
        self._workers = []

    def _start(self):
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(self.count):
            here, there = _CONTEXT.Pipe()
            process = _CONTEXT.Process(target=_work, args=(there, rank, self.count, port), daemon=True)
            process.start()
            there.close()
            self._workers.append((process, here))


def _work(connection, rank, count, port):
    # As torchrun does, so that Lightning knows that nobody needs to be launched.
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "tests",
        "OMP_NUM_THREADS": "1",
    }
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            return
        try:
            connection.send((function(*args), None))
        except BaseException:
            connection.send((None, traceback.format_exc()))
