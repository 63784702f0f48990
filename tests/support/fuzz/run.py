"""Fuzz one parser with atheris: ``-m support.fuzz.run PARSER DIRECTORY SECONDS``."""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["ray_imuckpt"]):
    import ray_imuckpt  # noqa: F401 - it is what is measured

from support.fuzz.mutations import mutated
from support.fuzz.targets import accepts, seeds


def main(target: str, directory: Path, seconds: str) -> None:
    """Run until a find, or for so many seconds."""
    logging.disable(logging.CRITICAL)
    corpus = directory / f"corpus-{target}"
    corpus.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        real = seeds(Path(place))[target]
    for number, data in enumerate(real):
        (corpus / f"seed-{number}").write_bytes(data)
    counts = {True: 0, False: 0}

    def one(data: bytes) -> None:
        counts[accepts(target, data)] += 1
        if sum(counts.values()) % 1000 == 0:
            told = f"{sum(counts.values())} inputs, {counts[True]} accepted\n"
            (directory / f"counts-{target}").write_text(told)

    def mutate(data: bytes, size: int, seed: int) -> bytes:
        """Alter a text where a parser looks, mostly; else as libFuzzer does."""
        random = Random(seed)
        how = random.random()
        if how < 0.1:
            return atheris.Mutate(data, size)
        # libFuzzer likes what is short, and whole texts are what parsers accept.
        return mutated(random.choice(real) if how < 0.5 else data, random)[:size]

    limits = ["-rss_limit_mb=4096", "-timeout=10", "-max_len=20000", "-len_control=0"]
    artifacts = f"-artifact_prefix={directory}/{target}-"
    flags = [f"-max_total_time={seconds}", "-verbosity=0", artifacts, *limits]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
