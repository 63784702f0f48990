"""Which way is up? A small recurrent network reads it from a gyroscope and an accelerometer.

The series are simulated, so the truth is known: a body turns smoothly and is shaken; its gyroscope
has a bias and noise, its accelerometer feels the shaking beside gravity. The network estimates the
inclination: the unit vector that points up, in the body's frame. That is roll and pitch; yaw cannot
be observed without a magnetometer, so it is not asked for.

Measured: 20 epochs take 56 s on one core of two. Then, on held-out series, the network is wrong by
2.4 degrees on average, a complementary filter (its gain tuned) by 3.8, the accelerometer by 7.3.
"""

from __future__ import annotations

import argparse
import math
import tempfile

import torch
from torch import nn
from torch.nn.functional import normalize

from ray_imuckpt import Checkpointer, PlateauDetector
from ray_imuckpt.schedules import Exponential

RATE = 25.0  # samples per second, Hz
GRAVITY = 9.81  # m/s^2


def simulate(series: int, seed: int, seconds: float = 8.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Simulate moving bodies, each with an inertial sensor sampled at `RATE` (Hz).

    Returns:
        The readings, (series, samples, 6): gyroscope in rad/s, then accelerometer in m/s^2, both in
        the body's frame; and the truth, (series, samples, 3): the unit vector up in that frame.
    """
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(round(seconds * RATE)).view(-1, 1, 1) / RATE

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def smooth(low: float, high: float, size: float) -> torch.Tensor:
        """Four sinusoids from `low` to `high` Hz on each axis, of root mean square `size`."""
        frequency = low + (high - low) * torch.rand(series, 1, 3, 4, generator=generator)
        wave = torch.sin(2 * math.pi * (frequency * time + normal(series, 1, 3, 4)))
        return size / math.sqrt(2) * (normal(series, 1, 3, 4) * wave).sum(-1)

    turning = smooth(0.05, 0.5, 0.4)  # rad/s
    shaking = smooth(0.5, 2.0, 1.0)  # m/s^2
    up = [normalize(normal(series, 3), dim=-1)]
    for rate in turning.unbind(1)[:-1]:
        up.append(turned(up[-1], rate))
    truth = torch.stack(up, 1)
    gyroscope = turning + 0.1 * normal(series, 1, 3) + 0.01 * normal(*turning.shape)
    accelerometer = GRAVITY * truth + shaking + 0.1 * normal(*truth.shape)
    return torch.cat([gyroscope, accelerometer], -1), truth


def turned(up: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
    """What `up`, (series, 3), becomes in a body that turns at `rate` (rad/s) for one sample.

    The turn is the quaternion (w, v); https://en.wikipedia.org/wiki/Quaternions_and_spatial_rotation
    """
    half = -rate.norm(dim=-1, keepdim=True) / RATE / 2  # minus: the world turns back past the body
    w, v = half.cos(), half.sin() * normalize(rate, dim=-1)
    twice = 2 * torch.linalg.cross(v, up)
    return up + w * twice + torch.linalg.cross(v, twice)


def complementary_filter(readings: torch.Tensor, gain: float) -> torch.Tensor:
    """The classical estimate of up: the gyroscope's, corrected by the accelerometer's."""
    felt = normalize(readings[..., 3:], dim=-1).unbind(1)
    up = [felt[0]]
    for rate, now in zip(readings[..., :3].unbind(1)[:-1], felt[1:], strict=True):
        up.append(normalize((1 - gain) * turned(up[-1], rate) + gain * now, dim=-1))
    return torch.stack(up, 1)


class Inclination(nn.Module):
    """From readings to the unit vector up: a GRU corrects what the accelerometer says."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(6, 48, batch_first=True)
        self.head = nn.Linear(48, 3)

    def forward(self, readings: torch.Tensor) -> torch.Tensor:
        """Of readings, (series, samples, 6), as `simulate` makes them."""
        rate, felt = readings[..., :3], readings[..., 3:] / GRAVITY
        hidden, _ = self.gru(torch.cat([rate, felt], -1))
        return normalize(felt + self.head(hidden), dim=-1)


def error(estimate: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The mean angle between the two, in degrees, over all series and samples."""
    sine, cosine = torch.linalg.cross(estimate, truth).norm(dim=-1), (estimate * truth).sum(-1)
    return torch.rad2deg(torch.atan2(sine, cosine)).mean()


def train(checkpointer: Checkpointer, series: int, epochs: int) -> None:
    """Train to epoch `epochs`, from the last checkpoint if there is one."""
    torch.manual_seed(0)
    readings, truth = simulate(series, seed=1)
    model = Inclination()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    plateau = PlateauDetector(Exponential(1e-2, 0.5), patience=2)
    model, optimizer, log, start_epoch, _ = checkpointer.start(model, optimizer, plateau=plateau)
    print(f"{start_epoch - 1} of {epochs} epochs are done")
    for epoch in range(start_epoch, epochs + 1):
        total = 0.0
        for batch in torch.randperm(series).split(32):  # the same order as if never interrupted
            optimizer.zero_grad()
            loss = error(model(readings[batch]), truth[batch])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            total += loss.item() * len(batch) / series
        if plateau.step(total):
            plateau.adjust(optimizer)
        log.append({"epoch": epoch, "loss": total, "learning_rate": plateau.learning_rate})
        checkpointer.checkpoint(
            epoch,
            model=model,
            optimizer=optimizer,
            log=log,
            metrics={"loss": total},
            last=epoch == epochs,
            plateau=plateau,
        )
        print(f"epoch {epoch:2d}  error in training {total:6.2f} degrees", flush=True)


def main() -> None:
    """Train, then test the last checkpoint on held-out series, beside two classical estimates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", help="default: runs/imu_attitude (--smoke: a temporary one)")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--smoke", action="store_true", help="six epochs on few series")
    options = parser.parse_args()
    series, epochs = (128, 6) if options.smoke else (1024, options.epochs)
    default = tempfile.mkdtemp(prefix="imu-attitude-") if options.smoke else "runs/imu_attitude"
    torch.set_num_threads(1)  # the matrices are small: a second thread costs more than it gives
    checkpointer = Checkpointer(options.dir or default, save_every=5)
    train(checkpointer, series, epochs)

    path = checkpointer.path_to_last_checkpoint()
    model = checkpointer.load(Inclination(), path)
    tuning, tuning_truth = simulate(128, seed=2)
    readings, truth = simulate(128, seed=3)
    gains = (0.05, 0.08, 0.1, 0.12, 0.15)
    gain = min(gains, key=lambda g: float(error(complementary_filter(tuning, g), tuning_truth)))
    print(f"\nmean error of the inclination on {len(truth)} held-out series, in degrees")
    print(f"  accelerometer alone:   {error(normalize(readings[..., 3:], dim=-1), truth):6.2f}")
    print(f"  complementary filter:  {error(complementary_filter(readings, gain), truth):6.2f}")
    print(f"  network:               {error(model(readings), truth):6.2f}")
    print(f"The network is that of {path}")


if __name__ == "__main__":
    main()
