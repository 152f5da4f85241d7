"""How a model knows positions: a file a part."""
