"""Contract test classes that plug-ins subclass."""
