"""For plugin authors: contracts to subclass, and a backend that echoes; needs pytest."""
