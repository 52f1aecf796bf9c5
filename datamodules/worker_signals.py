"""Loader processes outlive a signal that is meant for the training.

Ctrl-C in a terminal, SLURM and systemd signal every process of a job. Training then makes one more
optimizer step and saves, for which it needs its loader: a worker that is gone is an error.
"""

import os
import signal
import threading


def shield(worker: int) -> None:
    """Let this process end by its parent's SIGTERM only (a `worker_init_fn` of torch's loader).

    It also ends when its parent is gone, which torch's loop looks for every few seconds.

    Args:
        worker: its number, which does not matter.
    """
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # a handler is not told who sends, a thread that waits for the signal is
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
