"""What is done at each position: a file a part."""
