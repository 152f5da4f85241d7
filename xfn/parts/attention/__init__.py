"""How positions look at each other: a file a part."""
