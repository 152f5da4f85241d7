"""How a layer is put around a function: a file a part."""
