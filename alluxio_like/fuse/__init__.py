"""The FUSE daemon: one per mount."""
