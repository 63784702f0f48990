"""A save: collect → stage → write → commit."""
