"""Values as bytes: chunks with checksums, tensors as safetensors, trees as JSON. No I/O."""
