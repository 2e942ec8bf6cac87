"""The documentation site: its configuration, the pages that are made from code, and how links resolve."""
