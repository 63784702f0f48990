"""What is told of a run: what it goes on from, what was committed, what nobody keeps."""
