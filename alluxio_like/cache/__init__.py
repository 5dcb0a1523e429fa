"""Cache files and their index: the bytes on a worker's disks."""
