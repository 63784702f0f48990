"""What the sweeps share: models of storage, stories of training, what must hold after a fault."""
