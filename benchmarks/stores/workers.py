"""Each contender in a process of its own, whose processor time and memory are its alone."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
import traceback
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch
from torch import nn

from benchmarks.measure import build
from benchmarks.memory import forget_peak, status
from benchmarks.stores.contenders import CLIENTS, CONTENDERS, Contender, Surroundings

SAVE = "save until durable"
RESTORE = "restore"
MODEL = "model only"
TASKS = (SAVE, RESTORE, MODEL)


@dataclass(frozen=True)
class Cost:
    """What a task took of the process that did it.

    Attributes:
        seconds: Of the clock.
        processor: Seconds of processor time, of all threads.
        megabytes: The peak of the resident set above what was there before.
    """

    seconds: float
    processor: float
    megabytes: float


class Worker:
    """A process that saves and restores when it is asked to.

    Args:
        name: The contender's.
        surroundings: What it works in.
    """

    def __init__(self, name: str, surroundings: Surroundings) -> None:
        context = multiprocessing.get_context("spawn")
        self._name = name
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, name, surroundings)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pipe.close()
        self._process.join()

    def begin(self, directory: str, megabytes: float, tensors: int) -> None:
        """Make a state of so many megabytes, to be saved into a directory of the bucket."""
        self._ask((directory, megabytes, tensors))

    def do(self, task: str) -> Cost:
        """Do a task and return what it took."""
        cost: Cost = self._ask(task)
        return cost

    def _ask(self, what: str | tuple[str, float, int]) -> Any:
        self._pipe.send(what)
        answer, error = self._pipe.recv()
        if error is not None:
            raise RuntimeError(f"{self._name}: {what}: {error}")
        return answer


def _serve(pipe: Connection, name: str, surroundings: Surroundings) -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("ray_imuckpt").setLevel(logging.ERROR)
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"  # nobody looks for credentials in a network
    contender = CONTENDERS[name](surroundings)
    model: nn.Module = nn.Identity()
    while True:
        try:
            asked = pipe.recv()
        except EOFError:
            return
        try:
            if isinstance(asked, tuple):
                directory, megabytes, tensors = asked
                model, optimizer = build(megabytes, tensors)
                contender.begin(directory, model, optimizer)
                pipe.send((None, None))
            else:
                cost = _measured(contender, asked, model, checked=name not in CLIENTS)
                pipe.send((cost, None))
        except Exception:  # noqa: BLE001 - whatever it is, the asking process raises it
            pipe.send((None, traceback.format_exc()))


def _measured(contender: Contender, task: str, model: nn.Module, *, checked: bool) -> Cost:
    """Do a task, and look whether a restore has restored anything."""
    call = {
        SAVE: contender.save,
        RESTORE: contender.restore,
        MODEL: contender.restore_model,
    }[task]
    parameter = next(model.parameters()).detach()
    before = parameter.clone()
    if checked and task != SAVE:
        parameter.zero_()
    resident = status("VmRSS")
    forget_peak()
    processor, began = time.process_time(), time.perf_counter()
    call()
    seconds, spent = time.perf_counter() - began, time.process_time() - processor
    cost = Cost(seconds, spent, status("VmHWM") - resident)
    if not torch.equal(parameter, before):
        raise RuntimeError("what was restored is not what was saved")
    return cost
