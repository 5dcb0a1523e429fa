"""Stores under the namespace (UFS): S3 and local directories behind one small async interface.

Owns the interface (`api`), its implementations, and how their URIs and options are read. Knows nothing of inodes, caches or
retry budgets of callers.
"""
