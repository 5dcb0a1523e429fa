"""Real servers for tests and the demo, and a proxy that breaks what they answer."""
