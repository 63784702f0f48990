"""Train, stop at any moment (Ctrl-C, kill), run again: it goes on where it was. No Ray needed."""

import argparse

import torch
from torch import nn

from ray_imuckpt import Checkpointer

arguments = argparse.ArgumentParser(description=__doc__)
arguments.add_argument("--dir", default="checkpoints")
arguments.add_argument("--smoke", action="store_true", help="a few epochs only")
options = arguments.parse_args()
epochs = 3 if options.smoke else 50

torch.manual_seed(0)
x = torch.linspace(-3, 3, 512).unsqueeze(1)
y = torch.sin(x)
model = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

checkpointer = Checkpointer(options.dir, save_every=1)
model, optimizer, log, start_epoch, _ = checkpointer.start(model, optimizer)
for epoch in range(start_epoch, epochs + 1):
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    log.append({"epoch": epoch, "loss": loss.item()})
    checkpointer.checkpoint(epoch, model=model, optimizer=optimizer, log=log, last=epoch == epochs)
    print(f"epoch {epoch:2d}  loss {loss.item():.4f}")

checkpointer.load(model)  # later, anywhere: the weights of the last checkpoint
print(f"{len(log)} epochs in the log; last checkpoint: {checkpointer.path_to_last_checkpoint()}")
