"""What a checkpoint costs a gang: replicated and sharded, beside `torch.distributed.checkpoint`."""
