"""The CSI node plugin: parts of the node's mount as volumes of pods."""
