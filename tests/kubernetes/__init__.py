"""Tests of the image, of the chart, and of a node in miniature that runs what the chart renders."""
