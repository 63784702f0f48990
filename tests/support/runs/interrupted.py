"""A process that is interrupted again and again; test_storm.py and soak/interrupts.py do.

    python -m support.runs.interrupted DIRECTORY SEED INTERRUPTS SNAPSHOT

It prints what came of it, as JSON, and ends by one more interrupt, while it saves.

Every call of a Checkpointer that there is, interrupted at moments drawn at random, by one SIGINT or
by many in a row. After each, everything must be as if it had not been, and a save must be whole.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ray_imuckpt import Checkpointer
from ray_imuckpt.threads import parallel

HANGS = 250  # seconds after which a call is taken for one that waits for ever


class Storm:
    """One process under interrupts."""

    def __init__(self, directory: str, seed: int, snapshot: str) -> None:
        self.draw = random.Random(seed)
        self.told: Counter[str] = Counter()
        self.model = nn.ParameterList(nn.Parameter(torch.zeros(200)) for _ in range(300))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0, momentum=0.5)
        self.log: list[dict[str, float]] = []
        self.checkpointer = Checkpointer(f"{directory}/background", snapshot=snapshot)
        self.blocking = Checkpointer(f"{directory}/blocking", blocking=True)
        self.epoch = 0
        self.raging = False
        self.seconds: dict[str, float] = {}
        self.thresholds = gc.get_threshold()
        self.step()
        for checkpointer in (self.checkpointer, self.blocking):
            checkpointer.start(self.model, self.optimizer)
        self.whole()

    def fill(self, value: int) -> None:
        """Make the state that of an epoch."""
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(float(value))

    def step(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()

    def save(self, checkpointer: Checkpointer) -> None:
        self.log.append({"epoch": self.epoch})
        checkpointer.checkpoint(
            self.epoch, model=self.model, optimizer=self.optimizer, log=self.log
        )

    def saves_and_steps(self) -> None:
        self.save(self.checkpointer)
        self.step()
        self.checkpointer.wait()

    def calls(self) -> dict[str, Callable[[], Any]]:
        """Each call that is interrupted."""
        return {
            "checkpoint": lambda: self.save(self.checkpointer),
            "checkpoint, step, wait": self.saves_and_steps,
            "blocking": lambda: self.save(self.blocking),
            "start": lambda: self.checkpointer.start(self.model, self.optimizer),
            "load": lambda: self.checkpointer.load(self.model),
            "list": self.checkpointer.list_existing_checkpoint_indices,
            "each": lambda: parallel.each(lambda _: None, 30, threads=4),
        }

    def interrupt(self, name: str) -> None:
        """Make one call, and interrupt it within the time that it takes here."""
        call = self.calls()[name]
        if name not in self.seconds:
            began = time.perf_counter()
            call()
            self.seconds[name] = time.perf_counter() - began
        after = self.draw.uniform(1e-5, self.seconds[name])
        again = self.draw.choice((0.0, 0.0, max(1e-4, self.seconds[name] / 10)))
        signal.setitimer(signal.ITIMER_REAL, after, again)
        try:
            self.raging = True
            call()
            self.raging = False
        except KeyboardInterrupt:
            self.raging = False  # Python looks for signals at calls: none can come before this
            self.told["interrupted"] += 1
        signal.setitimer(signal.ITIMER_REAL, 0)

    def on_alarm(self, *_: object) -> None:
        if self.raging:
            signal.raise_signal(signal.SIGINT)

    def check(self) -> None:
        """Raise unless all is as it was before the call that was interrupted."""
        self.step()  # a fence that was left closed would hold it for ever
        for checkpointer in (self.checkpointer, self.blocking):
            checkpointer.wait()
        for thread in threading.enumerate():
            if thread.name.startswith("imuckpt") and thread.is_alive():
                thread.join(HANGS)  # its start was interrupted: it finds nothing to do
                assert not thread.is_alive(), thread
        assert gc.isenabled()
        assert gc.get_threshold() == self.thresholds

    def run(self, interrupts: int) -> None:
        """Make calls until that many have been interrupted."""
        names = list(self.calls())
        while self.told["interrupted"] < interrupts:
            faulthandler.dump_traceback_later(HANGS, exit=True)
            self.told["calls"] += 1
            self.epoch += 1
            self.fill(self.epoch)
            self.interrupt(self.draw.choice(names))
            self.check()
            if self.told["calls"] % 10 == 0:
                self.whole()
        self.whole()

    def whole(self) -> None:
        """A save that nobody interrupts is whole, and so is each one before."""
        self.epoch += 1
        self.fill(self.epoch)
        self.saves_and_steps()
        self.save(self.blocking)
        for checkpointer in (self.checkpointer, self.blocking):
            for epoch in checkpointer.list_existing_checkpoint_indices():
                checkpointer.verify(epoch)
                for name, tensor in checkpointer.read(epoch).model.items():
                    assert tensor.unique().tolist() == [float(epoch)], (epoch, name)
                self.told["whole"] += 1
            assert epoch == self.epoch
            checkpointer.prune(keep_last=2)


def main() -> None:
    directory, seed, interrupts, snapshot = sys.argv[1:]
    torch.set_num_threads(1)
    logging.getLogger("ray_imuckpt").setLevel(logging.ERROR)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
    storm = Storm(directory, int(seed), snapshot)
    signal.signal(signal.SIGALRM, storm.on_alarm)
    storm.run(int(interrupts))
    storm.epoch += 1
    storm.fill(storm.epoch)
    storm.save(storm.checkpointer)
    print(json.dumps({**storm.told, "last": storm.epoch}), flush=True)
    signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    main()
